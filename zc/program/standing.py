"""What a program consists of at a moment, to tell later whether anything has changed since.

    verified = Standing(program)
    ...                                  # a pass that may have changed nothing
    Standing(program) == verified

Lines (``zc.program.lines``: a node's op, arguments, type and stamp) and table entries are compared
as objects: whoever changes one puts another in its place, or another order. A standing holds all of
them, so that no later object can be taken for one that is gone. Notes for dumps do not count.
"""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from zc.program.lines import Reading, read
from zc.program.program import Program

_UNCOUNTED = ("graphs", "notes", "lines", "found", "still")


class Standing:
    """The objects of a program, in order; equal for as long as it has the same ones.

    Attributes:
        reading: the lines of its nodes.
    """

    def __init__(self, program: Program) -> None:
        self.reading = read(program)
        self._objects = [*_nodes(program, self.reading), *_tables(program)]
        self._identities = list(map(id, self._objects))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Standing) and self._identities == other._identities

    __hash__ = None  # type: ignore[assignment]


def _nodes(program: Program, reading: Reading) -> Iterator[Any]:
    for name, lines in reading.items():
        yield from (name, program.graphs[name])
        yield from lines.values()


def _tables(program: Program) -> Iterator[Any]:
    for field in fields(program):
        value = getattr(program, field.name)
        if field.name in _UNCOUNTED:
            continue
        if isinstance(value, dict):
            yield from value.keys()
            yield from value.values()
        elif isinstance(value, list):
            yield from value
        else:
            yield value
        yield field.name  # tables of other lengths do not run into each other
