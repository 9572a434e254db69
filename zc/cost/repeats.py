"""Gathers of what an earlier phase has gathered already, and which of them memory lets go.

A value that is kept lives from its last read to the gather that it replaces. Which ones are kept is
a knapsack problem, solved exactly (``zc.cost.knapsack``): the most seconds of gathers in the bytes
that are free at every moment at which they are kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from torch import fx

from zc.cost.device import Device
from zc.cost.knapsack import best_choice
from zc.program.collectives import (
    COLLECTIVES,
    collective_of,
    is_collective,
    output_bytes,
    waits_of,
)
from zc.program.loops import Loop, loop_by_node
from zc.program.mesh import Mesh
from zc.program.origins import Origins, Values
from zc.program.places import Places, places_in
from zc.program.program import Program
from zc.program.stamps import PHASES, stamp_of
from zc.program.storages import storages_of

_PER_SECOND = 10**12  # the knapsack counts in whole picoseconds


@dataclass(frozen=True)
class Repeat:
    """A gather of what an earlier phase has gathered already, all nodes by number.

    Attributes:
        waits: each wait for it, with the earlier wait that gave the same value.
        read: the last read of the earlier values.
        start: where it stands.
        nbytes: that keeping the values takes in between.
        picoseconds: that the gather takes.
    """

    waits: tuple[tuple[int, int], ...]
    read: int
    start: int
    nbytes: int
    picoseconds: int


def repeats_of(program: Program, device: Device) -> Iterator[Repeat]:
    """The gathers of ``program`` that bring what is there from an earlier phase."""
    places, loops = places_in(program), loop_by_node(program.graph)
    origins, values = Origins(places, places.accesses), Values()
    gathered: dict[Any, fx.Node] = {}
    for node in places.nodes:
        if not is_collective(node) or COLLECTIVES[node.target].op != "all_gather":
            values.number(node)
            continue
        found = []
        for wait, key in values.gathered(node):
            earlier = gathered.get(key)
            if earlier is not None and is_kept_for(earlier, wait, places, loops, origins):
                found.append((wait, earlier))
            gathered[key] = wait
        picoseconds = picoseconds_of(node, program.mesh, device)
        if picoseconds and found and len(found) == len(waits_of(node)):
            yield repeat_of(node, found, picoseconds, origins)


def is_kept_for(
    earlier: fx.Node,
    wait: fx.Node,
    places: Places,
    loops: dict[fx.Node, Loop],
    origins: Origins,
) -> bool:
    """Whether the value of ``earlier`` may be read in the place of that of ``wait``."""
    first, last = places.number[earlier], places.number[wait]
    apart = places.begins[first] != places.begins[last]
    phases = [PHASES.index(stamp_of(node).phase) for node in (earlier, wait)]
    if not apart or loops.get(earlier) is not loops.get(wait) or phases[0] > phases[1]:
        return False
    return origins.last_write((earlier, wait), last) < origins.of(earlier).first


def picoseconds_of(start: fx.Node, mesh: Mesh, device: Device) -> int:
    """How long a gather keeps its lane busy."""
    row = collective_of(start, mesh)
    seconds = device.collective_seconds(row.spec.op, row.group_size, row.wire_bytes)
    return round(seconds * _PER_SECOND)


def repeat_of(
    start: fx.Node,
    pairs: Sequence[tuple[fx.Node, fx.Node]],
    picoseconds: int,
    origins: Origins,
) -> Repeat:
    """The repetition that ``start`` is, for the pairs of its waits and earlier ones."""
    number = origins.places.number
    first = origins.of(pairs[0][0]).first
    keys = {key for _, earlier in pairs for key in storages_of(earlier)}
    nbytes = sum(output_bytes(wait) for wait, _ in pairs)
    waits = tuple((number[wait], number[earlier]) for wait, earlier in pairs)
    read = min(origins.accesses.last_read(keys), first - 1)
    return Repeat(waits, read, first, nbytes if read < first - 1 else 0, picoseconds)


def choose(repeats: Sequence[Repeat], live: Sequence[int], limit: int) -> list[Repeat]:
    """The repeats of most time together with which live bytes stay within ``limit``."""
    ranked = sorted(repeats, key=lambda r: (-r.start, r.read))
    values, sizes = [r.picoseconds for r in ranked], [r.nbytes for r in ranked]
    chosen = best_choice(values, sizes, rooms_of(ranked, live, limit))
    return sorted((ranked[i] for i in chosen), key=lambda r: r.start)


def rooms_of(ranked: Sequence[Repeat], live: Sequence[int], limit: int) -> list[int]:
    """What the repeats up to each one may take together; the last to be read again comes first.

    Where one is kept and those behind it in the list are not, there may also be all before it.
    Their times have its own inside, as layers have when backward goes through them in the reverse
    order; where they do not, a time counts as long enough to have those behind it inside.
    """
    begins = list(accumulate((r.read + 1 for r in reversed(ranked)), min))[::-1]
    ends = [r.start for r in ranked]
    inner = zip([*begins[1:], ends[-1]], [*ends[1:], ends[-1]], strict=True)
    rooms = []
    for begin, end, (next_begin, next_end) in zip(begins, ends, inner, strict=True):
        alone = [*live[begin : min(next_begin, end)], *live[max(next_end, begin) : end]]
        rooms.append(limit - max(alone, default=0))
    return rooms
