"""The numbers that 8 bits stand for: dynamic quantisation (Dettmers et al., arXiv:2110.02861).

A dynamic map (section 2.2 there) has 0, 1 and the middles of equal parts of seven decades from 1e-7
to 1; each decade has twice the parts of the one below it. The signed map has their negatives too,
but for -1; the unsigned one has twice the parts instead.

    code     0 ... 127 ... 255         signed: -0.993 ... 0 ... 1      unsigned: 0 ... 0.104 ... 1

Kernels need no table. Counted from zero, the place of a number among the magnitudes grows along
straight lines, one for each decade, flatter and flatter: the least of these lines is the place of
a magnitude, the greatest of their inverses the magnitude at a place.
"""

import math
from itertools import pairwise

DECADES = 7
CODES = 256
MIDDLE = 127  # code of zero in the signed map
EDGE = 0.2  # of the first part of a decade: there the last number of the decade below is nearest

Lines = list[tuple[float, float]]  # slope and offset of each


def parts_of_decades(signed: bool) -> list[int]:
    """How many numbers each decade has, from the lowest."""
    return [2**i if signed else 2 ** (i + 1) for i in range(DECADES)]


def magnitudes(signed: bool) -> list[float]:
    """The numbers of a map that are not negative, ascending; the signed one has 129, with 0."""
    found = [0.0]
    for decade, parts in enumerate(parts_of_decades(signed)):
        found += [_start(decade) * (1 + 9 * (k + 0.5) / parts) for k in range(parts)]
    return [*found, 1.0]


def numbers(signed: bool) -> list[float]:
    """The 256 numbers of a map, by code."""
    found = magnitudes(signed)
    return [*(-value for value in found[-2:0:-1]), *found] if signed else found


def thresholds(signed: bool) -> list[float]:
    """Where one magnitude ends and the next begins: half-way between them."""
    found = magnitudes(signed)
    return [(a + b) / 2 for a, b in pairwise(found)]


def max_error(signed: bool) -> float:
    """The largest distance from the map, of numbers of magnitude 1 at most."""
    found = magnitudes(signed)
    return max(b - a for a, b in pairwise(found)) / 2


def place_lines(signed: bool) -> Lines:
    """Lines whose least at a magnitude, cut off, is the place of the part it lies in.

    The nearest number is that of this part, but in two cases: the one below where the part is the
    first of its decade and less than ``EDGE`` of it is left behind, and 1 from ``last_threshold``
    on. The lowest line is bent so that the first of these also tells what is nearest to zero.
    """
    found, first = [], 1
    for decade, parts in enumerate(parts_of_decades(signed)):
        slope = parts / (9 * _start(decade))
        found.append((slope, first - slope * _start(decade)))
        first += parts
    low, second = thresholds(signed)[:2]
    slope = found[0][0] if signed else (1 - EDGE) / (second - low)
    found[0] = (slope, 1 + EDGE - slope * low)
    return found


def magnitude_lines(signed: bool) -> Lines:
    """Lines whose greatest at a place is the magnitude there, 0 at 0 and at most 1."""
    found, first = [], 1
    for decade, parts in enumerate(parts_of_decades(signed)):
        step = 9 * _start(decade) / parts
        found.append((step, _start(decade) + step * (0.5 - first)))
        first += parts
    return found


def last_threshold(signed: bool) -> float:
    """From here on 1 is nearest."""
    return thresholds(signed)[-1]


def line_text(line: tuple[float, float], variable: str, suffix: str = "") -> str:
    """``slope * variable + offset``, its numbers as literals of a language."""
    slope, offset = line
    sign = "-" if offset < 0 else "+"
    return f"{literal(slope, suffix)} * {variable} {sign} {literal(abs(offset), suffix)}"


def literal(value: float, suffix: str = "") -> str:
    """``value`` to the precision of fp32, ``suffix`` behind it."""
    text = f"{value:.9g}"
    return f"{text}{suffix}" if "." in text or "e" in text else f"{text}.0{suffix}"


def _start(decade: int) -> float:
    return math.pow(10, decade - DECADES)
