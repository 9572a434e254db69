"""What was worked out of a program, kept for as long as its nodes say the same.

    remembered(program, "peak", lambda: peak_bytes(program.graph))

Passes ask the same things one after another, and what one has found of a program that it leaves
alone is what the next one would find. It is kept with the lines (``zc.program.lines``) that it
follows from, by the program.
"""

from collections.abc import Callable, Hashable
from typing import TypeVar

from zc.program.lines import read, still
from zc.program.program import Program

T = TypeVar("T")


def remembered(
    program: Program, what: Hashable, find: Callable[[], T], *, in_order: bool = True
) -> T:
    """What ``find()`` returns, or has returned for the same lines of ``program``.

    Args:
        program: keeps it, and only what was found last.
        what: names it, and holds all besides the lines that it follows from.
        find: works it out; what it returns must not be changed.
        in_order: whether the order of nodes counts.
    """
    with still(program):
        rows = [tuple(lines.values()) for lines in read(program).values()]
        lines = rows if in_order else list(map(frozenset, rows))
        known = program.found.get(what)
        if known is None or known[0] != lines:
            known = program.found[what] = lines, find()
    return known[1]
