"""Sizes and durations: values, texts and every refusal."""

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zc.errors import PipelineError
from zc.program.units import Bytes, Duration


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("7B", 7),
        ("100KB", 100_000),
        ("500MB", 500_000_000),
        ("1.5GiB", 1_610_612_736),
        ("2TB", 2_000_000_000_000),
        ("0.5KiB", 512),
    ],
)
def test_bytes_remember_their_text(text: str, number: int):
    size = Bytes(text)
    assert (size, str(size), f"{size}", repr(size)) == (number, text, text, f"Bytes('{text}')")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0.0), ("10ms", 0.01), ("250us", 0.00025), ("1.5s", 1.5)],
)
def test_durations_remember_their_text(text: str, seconds: float):
    duration = Duration(text)
    assert (duration, str(duration), repr(duration)) == (seconds, text, f"Duration('{text}')")


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (1, "1B"), (1000, "1KB"), (1024, "1KiB"), (1536, "1536B"), (5 * 1024**3, "5GiB")],
)
def test_a_plain_number_of_bytes_prints_with_a_unit(number: int, text: str):
    assert str(Bytes(number)) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0"), (0.01, "10ms"), (1.5, "1.5s"), (120.0, "120s"), (2.5e-7, "0.25us")],
)
def test_a_plain_number_of_seconds_prints_with_a_unit(seconds: float, text: str):
    assert str(Duration(seconds)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "100",
            "100 has no unit; write '100B' or another of B, KB, MB, GB, TB, KiB, MiB, GiB, TiB",
        ),
        ("100 KB", "'100 KB' is not a size; write a number and a unit, as in 100KB or 1.5GiB"),
        ("", "'' is not a size; write a number and a unit, as in 100KB or 1.5GiB"),
        ("-1KB", "'-1KB' is not a size; write a number and a unit, as in 100KB or 1.5GiB"),
        ("1e3KB", "'1e3KB' is not a size; write a number and a unit, as in 100KB or 1.5GiB"),
        (
            "100kb",
            "'100kb' has an unknown unit 'kb'; the units are B, KB, MB, GB, TB, KiB, MiB, GiB, TiB",
        ),
        ("1.5B", "'1.5B' is not a whole number of bytes"),
        (-1, "a size cannot be negative; got -1"),
    ],
)
def test_what_is_no_size_is_refused(text: str | int, message: str):
    with pytest.raises(PipelineError) as caught:
        Bytes(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10", "10 has no unit; write '10s' or another of s, ms, us"),
        ("ten ms", "'ten ms' is not a duration; write a number and a unit, as in 10ms or 1.5s"),
        ("10sec", "'10sec' has an unknown unit 'sec'; the units are s, ms, us"),
        (-1.0, "a duration must be finite and not negative; got -1.0s"),
        (float("inf"), "a duration must be finite and not negative; got infs"),
    ],
)
def test_what_is_no_duration_is_refused(text: str | float, message: str):
    with pytest.raises(PipelineError) as caught:
        Duration(text)
    assert str(caught.value) == message


@pytest.mark.parametrize("value", [Bytes("1.5GiB"), Duration("10ms")])
def test_copies_keep_the_text(value: Bytes | Duration):
    assert str(copy.deepcopy(value)) == str(value)
    assert str(pickle.loads(pickle.dumps(value))) == str(value)


@given(st.integers(min_value=0, max_value=2**60))
def test_every_number_of_bytes_reads_back(number: int):
    assert Bytes(str(Bytes(number))) == number


@given(st.floats(min_value=0, allow_nan=False, allow_infinity=False))
def test_every_number_of_seconds_reads_back(seconds: float):
    assert Duration(str(Duration(seconds))) == seconds
