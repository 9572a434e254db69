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
is without a memory limit to fill, and where its predicted time would not fall.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

from torch import fx
from torch.fx.node import map_arg

from zc.cost.device import Device
from zc.cost.knapsack import best_choice
from zc.cost.simulate import simulate
from zc.cost.slack import waits_of
from zc.cost.trial import device_of, done_note, idle_note, memory_limit, shorter
from zc.program.analysis import is_random
from zc.program.collectives import COLLECTIVES, collective_of, is_collective, output_bytes
from zc.program.copying import copy_program
from zc.program.edit import Editor, erase_dead
from zc.program.effects import is_effect
from zc.program.liveness import memory_timeline, peak_bytes, storages_of
from zc.program.loops import Loop, loop_by_node
from zc.program.mesh import Mesh
from zc.program.pass_base import Kind, Pass
from zc.program.places import Accesses, Places, places_of
from zc.program.program import Program
from zc.program.stamps import PHASES, stamp_of
from zc.program.units import Bytes

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
        live = [point.live_bytes for point in memory_timeline(program.graph)]
        limit = memory_limit(program, max(live), self.memory, 0)
        chosen = choose(repeats, live, limit)
        before, rehearsed = simulate(program, device), copy_program(program)
        keep(rehearsed, chosen, self.name)
        after, peak = simulate(rehearsed, device), peak_bytes(rehearsed.graph)
        if peak > max(limit, max(live)) or not shorter(after, before):
            return idle_note("keeping parameters gathered", limit)
        keep(program, chosen, self.name)
        done = f"{len(chosen)} of {len(repeats)} gathers are not repeated"
        return done_note(done, limit, before, after)


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
    places, loops = places_of(program.graph), loop_by_node(program.graph)
    accesses, values = Accesses(places), Values()
    gathered: dict[Any, fx.Node] = {}
    for node in places.nodes:
        if not is_collective(node) or COLLECTIVES[node.target].op != "all_gather":
            values.number(node)
            continue
        found = []
        for wait, key in values.gathered(node):
            earlier = gathered.get(key)
            if earlier is not None and is_kept_for(earlier, wait, places, loops, accesses):
                found.append((wait, earlier))
            gathered[key] = wait
        picoseconds = picoseconds_of(node, program.mesh, device)
        if picoseconds and found and len(found) == len(waits_of(node)):
            yield repeat_of(node, found, picoseconds, places, accesses)


class Values:
    """Numbers for values made from inputs without effect: equal numbers, equal values."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}
        self._of: dict[fx.Node, int] = {}

    def number(self, node: fx.Node) -> None:
        """Give ``node`` the number of the nodes that do the same."""
        if is_effect(node) or is_random(node):
            return
        inputs = [self._input(source) for source in node.all_input_nodes]
        if all(number is not None for number in inputs):
            key = (node.target, *self._described((node.args, node.kwargs)))
            self._of[node] = self._numbers.setdefault(key, len(self._numbers))

    def gathered(self, start: fx.Node) -> Iterator[tuple[fx.Node, Any]]:
        """Each wait for the gather ``start``, and what tells its value from others."""
        operands = start.args[0]
        for wait in waits_of(start):
            item: Any = wait.args[0]
            operand = operands if item is start else operands[item.args[1]]  # type: ignore[index]
            number = self._input(operand)  # type: ignore[arg-type]
            if number is not None:
                yield wait, (number, start.args[1:])

    def _input(self, node: fx.Node) -> int | None:
        if node.op in ("placeholder", "get_attr"):
            return self._numbers.setdefault(node, len(self._numbers))
        return self._of.get(node)

    def _described(self, args: Any) -> tuple[str, ...]:
        return (str(map_arg(args, lambda node: f"%{self._input(node)}")),)


def is_kept_for(
    earlier: fx.Node,
    wait: fx.Node,
    places: Places,
    loops: dict[fx.Node, Loop],
    accesses: Accesses,
) -> bool:
    """Whether the value of ``earlier`` may be read in the place of that of ``wait``."""
    first, last = places.number[earlier], places.number[wait]
    apart = places.begins[first] != places.begins[last]
    phases = [PHASES.index(stamp_of(node).phase) for node in (earlier, wait)]
    if not apart or loops.get(earlier) is not loops.get(wait) or phases[0] > phases[1]:
        return False
    keys = inputs_behind(earlier) | inputs_behind(wait)
    made = min(places.number.get(node, first) for node in chain_behind(earlier))
    return accesses.last_write(keys, last) < made


def chain_behind(wait: fx.Node) -> list[fx.Node]:
    """The computed nodes that the value of ``wait`` comes from."""
    found = {wait: None}
    pending = [wait]
    while pending:
        new = [s for s in pending.pop().all_input_nodes if s not in found]
        found |= dict.fromkeys(new)
        pending += new
    return [node for node in found if node.op == "call_function"]


def inputs_behind(wait: fx.Node) -> set[int]:
    """The storages of inputs that the value of ``wait`` comes from."""
    sources = {s for node in chain_behind(wait) for s in node.all_input_nodes}
    return {key for s in sources if s.op == "placeholder" for key in storages_of(s)}


def picoseconds_of(start: fx.Node, mesh: Mesh, device: Device) -> int:
    """How long a gather keeps its lane busy."""
    row = collective_of(start, mesh)
    seconds = device.collective_seconds(row.spec.op, row.group_size, row.wire_bytes)
    return round(seconds * _PER_SECOND)


def repeat_of(
    start: fx.Node,
    pairs: Sequence[tuple[fx.Node, fx.Node]],
    picoseconds: int,
    places: Places,
    accesses: Accesses,
) -> Repeat:
    """The repetition that ``start`` is, for the pairs of its waits and earlier ones."""
    number = places.number
    first = min(number[node] for wait, _ in pairs for node in chain_behind(wait))
    keys = {key for _, earlier in pairs for key in storages_of(earlier)}
    nbytes = sum(output_bytes(wait) for wait, _ in pairs)
    waits = tuple((number[wait], number[earlier]) for wait, earlier in pairs)
    read = min(accesses.last_read(keys), first - 1)
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
