"""Numbers and names as dumps, notes and tables write them."""

import re

_UNITS = ("B", "KB", "MB", "GB", "TB", "PB")


def show_bytes(count: float) -> str:
    """``count`` bytes for people, in powers of 1000: ``512 B``, ``12.6 MB``, ``1.50 GB``."""
    sign, value = ("-", -count) if count < 0 else ("", count)
    unit = 0
    while round(value, 1) >= 1000 and unit < len(_UNITS) - 1:
        value /= 1000
        unit += 1
    digits = 0 if unit == 0 or value >= 100 else 1 if value >= 10 else 2
    return f"{sign}{value:.{digits}f} {_UNITS[unit]}"


def show_seconds(seconds: float) -> str:
    """``seconds`` for people, to three digits: ``15.2 us``, ``7.8 ms``, ``1.14 s``."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if abs(seconds) >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def show_count(count: int, one: str, many: str = "") -> str:
    """``1 node``, ``12,345 nodes``; ``many`` is ``one`` with an s unless given."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def slug_of(name: str) -> str:
    """A folder name for the program ``name``: letters, digits, dots, dashes, underscores."""
    words = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")
    return words[-80:].strip("-.") or "program"
