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


@dataclass
class _Open:
    """A part that goes on, and what parts inside of it took."""

    part: str
    started: float
    inner: float = 0.0


_spent: dict[str, Spent] = {}
_marked: dict[str, Spent] = {}
_local = threading.local()


@contextmanager
def spending(part: str) -> Iterator[None]:
    """What happens inside is ``part``."""
    _stack().append(_Open(part, time.perf_counter()))
    try:
        yield
    finally:
        ended = _stack().pop()
        whole = time.perf_counter() - ended.started
        add(part, whole - ended.inner)
        _inside(whole)


def _stack() -> list[_Open]:
    return vars(_local).setdefault("stack", [])


def _inside(seconds: float) -> None:
    """What goes on has had ``seconds`` of another part in it."""
    if _stack():
        _stack()[-1].inner += seconds


def add(part: str, seconds: float) -> None:
    """Count ``seconds`` that ``part`` took."""
    _spent[part] = _spent.get(part, Spent()) + Spent(seconds, 1)


def attribute(part: str, seconds: float) -> None:
    """Count ``seconds`` of what is being spent right now as ``part``."""
    add(part, seconds)
    _inside(seconds)


def mark() -> None:
    """The compilation of another program begins."""
    _marked.clear()
    _marked.update(_spent)


def since_mark() -> dict[str, Spent]:
    """What was spent since the last ``mark``, by part; one that goes on counts as far as it is."""
    found = {part: spent - _marked.get(part, Spent()) for part, spent in _spent.items()}
    now, nested = time.perf_counter(), 0.0
    for going in reversed(_stack()):
        whole = now - going.started
        spent = Spent(whole - going.inner - nested, 1)
        found[going.part] = found.get(going.part, Spent()) + spent
        nested = whole
    return {part: spent for part, spent in found.items() if spent.times}


def table(spent: dict[str, Spent]) -> str:
    """``spent`` as a Markdown table, its sum last."""
    rows = [f"| {part} | {s.seconds:.3f} | {s.times} |" for part, s in spent.items()]
    total = sum(s.seconds for s in spent.values())
    lines = ["| part | seconds | times |", "|---|--:|--:|", *rows, f"| all | {total:.3f} | |"]
    return "\n".join(lines) + "\n"
