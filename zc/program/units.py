"""Sizes and durations that carry their unit: ``100KB``, ``1.5GiB``, ``10ms``.

    Bytes("1.5GiB") == 1610612736       str(Bytes("1.5GiB")) == "1.5GiB"
    Duration("10ms") == 0.01            str(Duration("10ms")) == "10ms"
    Rate("3.35TB/s") == 3.35e12         str(Rate("3.35TB/s")) == "3.35TB/s"

KB is 1000 bytes, KiB is 1024. All compare and compute as plain numbers and print as they were
written.
"""

import math
import re
from decimal import Decimal
from fractions import Fraction

from zc.errors import PipelineError

BYTE_UNITS = {
    "B": 1,
    "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4,
    "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4,
}  # fmt: skip
SECOND_UNITS = {"s": "1", "ms": "0.001", "us": "0.000001"}
_PREFIXES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
RATE_UNITS = {f"{p}{u}/s": size for u in ("B", "FLOP") for p, size in _PREFIXES.items()}


class Bytes(int):
    """A number of bytes, given as a number or as text with a unit.

    Raises:
        PipelineError: for text that is no size, for a negative size and for part of a byte.
    """

    _text: str

    def __new__(cls, value: int | str) -> "Bytes":  # noqa: D102
        number = _parse_bytes(value) if isinstance(value, str) else value
        if number < 0:
            raise PipelineError(f"a size cannot be negative; got {number}")
        self = super().__new__(cls, number)
        self._text = value if isinstance(value, str) else _bytes_text(int(self))
        return self

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Bytes({self._text!r})"


class Duration(float):
    """A duration in seconds, given as a number or as text with a unit.

    Raises:
        PipelineError: for text that is no duration, and for a negative or endless one.
    """

    _text: str

    def __new__(cls, value: float | str) -> "Duration":  # noqa: D102
        number = _parse_seconds(value) if isinstance(value, str) else value
        if number < 0 or not math.isfinite(number):
            raise PipelineError(f"a duration must be finite and not negative; got {number}s")
        self = super().__new__(cls, number)
        self._text = value if isinstance(value, str) else _seconds_text(float(self))
        return self

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Duration({self._text!r})"


class Rate(float):
    """Bytes or floating-point operations per second, given as a number or as text with a unit.

    Raises:
        PipelineError: for text that is no rate, and for a rate that is not above zero.
    """

    _text: str

    def __new__(cls, value: float | str) -> "Rate":  # noqa: D102
        number = _parse_rate(value) if isinstance(value, str) else value
        if number <= 0 or not math.isfinite(number):
            raise PipelineError(f"a rate must be finite and above zero; got {number:g}/s")
        self = super().__new__(cls, number)
        self._text = value if isinstance(value, str) else f"{number:g}/s"
        return self

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Rate({self._text!r})"


def _parse_bytes(text: str) -> int:
    number, unit = _split(text, "size", "100KB or 1.5GiB", tuple(BYTE_UNITS))
    total = number * BYTE_UNITS.get(unit, 1)
    if total.denominator != 1:
        raise PipelineError(f"'{text}' is not a whole number of bytes")
    return int(total)


def _parse_seconds(text: str) -> float:
    number, unit = _split(text, "duration", "10ms or 1.5s", tuple(SECOND_UNITS))
    return float(number * Fraction(SECOND_UNITS.get(unit, "1")))


def _parse_rate(text: str) -> float:
    number, unit = _split(text, "rate", "3.35TB/s or 989TFLOP/s", tuple(RATE_UNITS))
    return float(number * RATE_UNITS.get(unit, 1))


def _split(text: str, what: str, example: str, units: tuple[str, ...]) -> tuple[Fraction, str]:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([A-Za-z/]*)", text)
    if match is None:
        raise PipelineError(f"'{text}' is not a {what}; write a number and a unit, as in {example}")
    number, unit = match.groups()
    if not unit and text != "0":
        raise PipelineError(
            f"{text} has no unit; write '{text}{units[0]}' or another of {_list(units)}"
        )
    if unit and unit not in units:
        raise PipelineError(f"'{text}' has an unknown unit '{unit}'; the units are {_list(units)}")
    return Fraction(number), unit


def _list(units: tuple[str, ...]) -> str:
    return ", ".join(units)


def _bytes_text(number: int) -> str:
    """The shortest text in whole units."""
    if number == 0:
        return "0"
    exact = [f"{number // size}{unit}" for unit, size in BYTE_UNITS.items() if number % size == 0]
    return min(exact, key=len)


def _seconds_text(seconds: float) -> str:
    """The shortest decimal text, which reads back as the same number."""
    if seconds == 0:
        return "0"
    exact = Decimal(repr(seconds))
    scaled = {unit: (exact / Decimal(size)).normalize() for unit, size in SECOND_UNITS.items()}
    return min((f"{number:f}{unit}" for unit, number in scaled.items()), key=len)
