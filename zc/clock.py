"""Where the seconds of compiling go, by part; dumps show it as ``seconds.txt``.

with spending("verification"):
    ...                         # what is spent in parts inside of it counts there, not here

Seconds are those of the wall; what other processes use meanwhile is in them.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Spent:
    """Seconds of one part, and how often it was entered."""

    seconds: float = 0.0
    times: int = 0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.seconds + other.seconds, self.times + other.times)

    def __sub__(self, other: "Spent") -> "Spent":
        return Spent(self.seconds - other.seconds, self.times - other.times)


_spent: dict[str, Spent] = {}
_marked: dict[str, Spent] = {}
_open = threading.local()


@contextmanager
def spending(part: str) -> Iterator[None]:
    """What happens inside is ``part``."""
    outer = getattr(_open, "inner_seconds", 0.0)
    _open.inner_seconds = 0.0
    started = time.perf_counter()
    try:
        yield
    finally:
        whole = time.perf_counter() - started
        add(part, whole - _open.inner_seconds)
        _open.inner_seconds = outer + whole


def add(part: str, seconds: float) -> None:
    """Count ``seconds`` that ``part`` took."""
    _spent[part] = _spent.get(part, Spent()) + Spent(seconds, 1)


def attribute(part: str, seconds: float) -> None:
    """Count ``seconds`` of what is being spent right now as ``part``."""
    add(part, seconds)
    _open.inner_seconds += seconds


def mark() -> None:
    """The compilation of another program begins."""
    _marked.clear()
    _marked.update(_spent)


def since_mark() -> dict[str, Spent]:
    """What was spent since the last ``mark``, by part, in the order of first use."""
    found = {part: spent - _marked.get(part, Spent()) for part, spent in _spent.items()}
    return {part: spent for part, spent in found.items() if spent.times}


def table(spent: dict[str, Spent]) -> str:
    """``spent`` as a Markdown table, its sum last."""
    rows = [f"| {part} | {s.seconds:.3f} | {s.times} |" for part, s in spent.items()]
    total = sum(s.seconds for s in spent.values())
    lines = ["| part | seconds | times |", "|---|--:|--:|", *rows, f"| all | {total:.3f} | |"]
    return "\n".join(lines) + "\n"
