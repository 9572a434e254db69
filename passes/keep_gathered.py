"""Keep parameters gathered from forward to backward where memory has room, and gather them once.

before:  %w0_full: f32[8, 8] = c10d.wait_tensor(%w0_gather)
         %mm: f32[2, 8] = aten.mm(%x, %w0_full)
         -- backward --
         %w0_gather_1: f32[8, 8] = c10d.all_gather_into_tensor(%w0, 4, "dp")
         %w0_full_again: f32[8, 8] = c10d.wait_tensor(%w0_gather_1)
         %t: f32[8, 8] = aten.t(%w0_full_again)
after:   %w0_full: f32[8, 8] = c10d.wait_tensor(%w0_gather)
         %mm: f32[2, 8] = aten.mm(%x, %w0_full)
         -- backward --
         %t: f32[8, 8] = aten.t(%w0_full)

A value kept lives from its last read in forward to the gather that it replaces. Which ones are kept
is a knapsack problem, solved exactly (``zc.cost.knapsack``): the most seconds of gathers in the
bytes that are free at every moment at which they are kept. Nothing else is kept: what is computed
from a gathered value is computed again in backward. A bucket is one gather. The program stays as it
is without a memory limit to fill, and where its predicted time would not fall. What has been
decided for the same collectives before (``zc.program.decisions``) is done again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

from torch import fx

from zc.cost.device import Device
from zc.cost.knapsack import best_choice
from zc.cost.trial import device_of, done_note, idle_note, memory_limit, shorter, step_of
from zc.program.collectives import (
    COLLECTIVES,
    collective_of,
    is_collective,
    output_bytes,
    waits_of,
)
from zc.program.copying import copy_program, restore
from zc.program.decisions import decision_key, starts_of
from zc.program.edit import Editor, erase_dead
from zc.program.liveness import live_bytes
from zc.program.loops import Loop, loop_by_node
from zc.program.mesh import Mesh
from zc.program.origins import Origins, Values
from zc.program.pass_base import Kind, Pass
from zc.program.places import Places, places_in
from zc.program.program import Program
from zc.program.stamps import PHASES, stamp_of
from zc.program.storages import storages_of
from zc.program.units import Bytes

_TRIES = 3
_PER_SECOND = 10**12  # the knapsack counts in whole picoseconds


@dataclass(frozen=True)
class KeepGathered(Pass):
    """Keep what saves the most time of gathers in the bytes that are free.

    These are the pass pipeline's ``memory_cap`` less the predicted peak, or ``memory`` where that
    is given and less. With neither, nothing is kept.
    """

    kind: ClassVar[Kind] = "optional"
    requires: ClassVar[frozenset[str]] = frozenset({"sharded_params"})
    memory: Bytes | None = None  # bytes above the peak that gathered parameters may take

    def run(self, program: Program) -> None:
        """Let backward read what forward has gathered, and erase the gathers that nobody reads.

        Raises:
            PipelineError: for a program without a device.
        """
        program.notes.append(f"{self.name}: {self._kept(program, device_of(program, self.name))}")

    def _kept(self, program: Program, device: Device) -> str:
        if self.memory is None and program.cap_bytes is None:
            return "left alone: there is no memory_cap, and no memory to keep anything in"
        repeats = list(repeats_of(program, device))
        if not repeats:
            return "left alone: nothing is gathered a second time"
        key, starts = decision_key(program, self.name), starts_of(program.graph)
        nodes = places_in(program).nodes
        decided = program.decisions.get(key)
        if decided is not None:
            wanted = {starts[number] for number in decided}
            chosen = [repeat for repeat in repeats if nodes[repeat.start] in wanted]
            keep(program, chosen, self.name)
            return f"{len(chosen)} of {len(repeats)} gathers are not repeated, as decided before"
        chosen, said = self._keep_best(program, device, repeats)
        kept = {nodes[repeat.start] for repeat in chosen}
        program.decisions[key] = tuple(i for i, start in enumerate(starts) if start in kept)
        return said

    def _keep_best(
        self, program: Program, device: Device, repeats: Sequence["Repeat"]
    ) -> tuple[list["Repeat"], str]:
        """Keep what shortens the step: that, and what to say of it.

        Where nothing does, the program is as it was, of other nodes perhaps.
        """
        live, before = live_bytes(program), step_of(program, device).timeline
        limit = memory_limit(program, max(live), self.memory, 0)
        room = limit
        for _ in range(_TRIES):
            chosen = choose(repeats, live, room)
            if not chosen:
                break
            saved = copy_program(program)
            keep(program, chosen, self.name)
            over = max(live_bytes(program)) - max(limit, *live)
            after = step_of(program, device).timeline if over <= 0 else before
            if shorter(after, before):
                done = f"{len(chosen)} of {len(repeats)} gathers are not repeated"
                return chosen, done_note(done, limit, before, after)
            restore(program, saved)
            if over <= 0:
                break
            room -= over  # regions are others without the gathers, and hold other values
        return [], idle_note("keeping parameters gathered", limit)


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


def keep(program: Program, repeats: Sequence[Repeat], made_by: str) -> None:
    """Read the earlier values in the place of ``repeats``, whose gathers go."""
    if not repeats:
        return
    graph, params = program.graph, set(program.rules.get("kept_gathered", ()))
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    kept: dict[int, int] = {}
    gone: set[int] = set()
    for wait, earlier in (pair for repeat in repeats for pair in repeat.waits):
        kept[wait] = kept.get(earlier, earlier)
        params.add(stamp_of(nodes[wait]).param)
        gone |= storages_of(nodes[wait]).keys()
        nodes[wait].replace_all_uses_with(nodes[kept[wait]])
    for repeat in repeats:
        erase_dead(graph, [nodes[wait] for wait, _ in repeat.waits])
    edit = Editor(program, graph, made_by)
    for node in graph.nodes:
        if node.op == "call_function" and not gone.isdisjoint(storages_of(node)):
            node.meta["val"] = edit.derive(node)
    program.rules["kept_gathered"] = tuple(name for name in program.params if name in params)
