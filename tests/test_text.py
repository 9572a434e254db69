import pytest

from zc.text import show_bytes, show_count, show_seconds, slug_of


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 KB"), (12_600_000, "12.6 MB"), (999_960, "1.00 MB"),
     (512_000, "512 KB"), (-2500, "-2.50 KB"), (3 * 10**18, "3000 PB")],
)  # fmt: skip
def test_bytes_have_three_digits(count: int, shown: str):
    assert show_bytes(count) == shown


def test_counts_know_their_plural():
    assert show_count(1, "node") == "1 node"
    assert show_count(12345, "node") == "12,345 nodes"
    assert show_count(2, "pass", "passes") == "2 passes"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 us"),
        (1.52e-5, "15.2 us"),
        (0.0078, "7.8 ms"),
        (1.1412, "1.14 s"),
        (-0.5, "-500 ms"),
    ],
)
def test_seconds_for_people(seconds: float, text: str):
    assert show_seconds(seconds) == text


@pytest.mark.parametrize(
    ("name", "slug"),
    [("train.py:12 step", "train.py-12-step"), ("../../etc", "etc"), ("<>", "program"),
     ("a/b.py:3 f.<locals>.g", "a-b.py-3-f.-locals-.g"), ("x" * 200, "x" * 80)],
)  # fmt: skip
def test_slugs_are_plain_file_names(name: str, slug: str):
    assert slug_of(name) == slug
