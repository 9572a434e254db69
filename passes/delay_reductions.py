"""Wait for the reductions of gradients later, so that they travel while backward computes on.

before:  %w1_grad_scatter: f32[4, 8] = c10d.reduce_scatter_tensor(%mm_2, "avg", 2, "dp")
         %w1_grad: f32[4, 8] = c10d.wait_tensor(%w1_grad_scatter)
         %mm_3: f32[2, 8] = aten.mm(%tanh_backward, %t_1)
after:   %w1_grad_scatter: f32[4, 8] = c10d.reduce_scatter_tensor(%mm_2, "avg", 2, "dp")
         %mm_3: f32[2, 8] = aten.mm(%tanh_backward, %t_1)
         %w1_grad: f32[4, 8] = c10d.wait_tensor(%w1_grad_scatter)

What stands right behind a wait and reads it moves with it: a cast, the sum over micro-batches, the
update of the parameter. Waits keep their order and go no further than their first other reader, or
the next access to what moves with them, and leave neither a loop nor their turn of backward. A
reduction holds the whole gradient until its wait, so under a memory limit the oldest is waited for
before one more would be too many. Each wait goes to the last place that memory allows, which is the
best plan with that order (``zc.cost.windows`` says why); then to the first at which the reduction
has ended (``zc.cost.slack``), which holds less memory. The program stays as it is where its
predicted time would not fall.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from zc.cost.slack import Clock, Search
from zc.cost.trial import Trial, device_of, memory_limit
from zc.cost.windows import Window, latest
from zc.program.collectives import COLLECTIVES, is_collective, is_wait, waits_of
from zc.program.nodes import is_view
from zc.program.pass_base import Kind, Pass
from zc.program.places import Accesses, Group, Places, move, places_in
from zc.program.program import Program
from zc.program.stamps import UPDATE, stamp_of
from zc.program.storages import storages_of, written_operands
from zc.program.units import Bytes

aten: Any = torch.ops.aten
_LIGHT = (aten._to_copy.default, aten.add_.Tensor)


@dataclass(frozen=True)
class DelayReductions(Pass):
    """Wait for each reduction as late as memory allows and as early as costs no time.

    Live bytes stay within the pass pipeline's ``memory_cap``, and within ``memory`` above the
    predicted peak where that is given. With neither, the largest reduction may be added twice.
    """

    kind: ClassVar[Kind] = "optional"
    requires: ClassVar[frozenset[str]] = frozenset({"sharded_params"})
    memory: Bytes | None = None  # bytes above the peak that reductions under way may take

    def run(self, program: Program) -> None:
        """Move the waits of reductions where that shortens the step.

        Raises:
            PipelineError: for a program without a device.
        """
        device = device_of(program, self.name)
        places = places_in(program)
        tails = list(tails_of(places))
        movable = [tail for tail in tails if tail.window.first < tail.window.last]
        if not movable:
            program.notes.append(f"{self.name}: left alone: no reduction can be waited for later")
            return
        trial = Trial(program, device)
        live = trial.live
        largest = max(tail.window.nbytes for tail in movable)
        limit = memory_limit(program, max(live), self.memory, 2 * largest)

        def place(room: int) -> list[Group]:
            late = latest([tail.window for tail in tails], live, room, places)
            move(places, groups(tails, late))
            clock = Clock(program, trial.timeline(), device)
            found = groups(tails, brought_forward(places, tails, late, clock))
            trial.undo()
            move(places, found)
            return found

        moved = trial.within(limit, place)
        done = f"{len(moved)} of {len(movable)} reductions are waited for later"
        trial.settle(self.name, done, "waiting for reductions later", limit)


@dataclass(frozen=True)
class Tail:
    """The waits for the reduction ``start`` and what moves with them; ``window``: where to."""

    start: fx.Node
    nodes: tuple[fx.Node, ...]
    window: Window


def tails_of(places: Places) -> Iterator[Tail]:
    """What moves of each reduction, if it can, in the order of their waits."""
    accesses = places.accesses
    starts = [n for n in places.nodes if is_collective(n)]
    starts = [n for n in starts if COLLECTIVES[n.target].lane == "reduce" and waits_of(n)]
    first = {start: min(places.number[wait] for wait in waits_of(start)) for start in starts}
    for start in sorted(starts, key=first.__getitem__):
        nodes = tail_of(start, first[start], places)
        window = window_of(start, nodes, places, accesses)
        yield Tail(start, nodes, window)


def tail_of(start: fx.Node, first: int, places: Places) -> tuple[fx.Node, ...]:
    """The first wait for ``start``, number ``first``, and what behind it moves with it.

    Updates of other parameters may stand in between; anything else ends it.
    """
    waits = set(waits_of(start))
    params = {stamp_of(wait).param for wait in waits} - {""}
    found: dict[fx.Node, None] = {}
    for number in range(first, places.ends[first]):
        node = places.nodes[number]
        reads = any(source in found for source in node.all_input_nodes)
        update = stamp_of(node).phase == UPDATE and not (is_collective(node) or is_wait(node))
        light = reads and (node.target in _LIGHT or is_view(node))
        if node in waits or light or (update and (reads or stamp_of(node).param in params)):
            found[node] = None
        elif not update and start not in node.all_input_nodes:
            break
    return tuple(found)


def window_of(
    start: fx.Node, nodes: tuple[fx.Node, ...], places: Places, accesses: Accesses
) -> Window:
    """Where ``nodes`` may be put; ``last`` is ``first`` where they cannot move."""
    number = places.number
    begin, end, own = number[nodes[0]], number[nodes[-1]], {number[n] for n in nodes}
    written = {k for n in nodes for value in written_operands(n) for k in storages_of(value)}
    read = {k for n in nodes for value in n.all_input_nodes for k in storages_of(value)}
    bounds = [
        places.ends[begin],
        accesses.next_use(written, begin, own),
        accesses.next_write(read - written, begin, own),
        *(number[u] for n in nodes for u in n.users if u in number and number[u] not in own),
    ]
    last = max(min(bound for bound in bounds if bound is not None), end + 1)
    return Window(end + 1, last, held_bytes(start, nodes, places), begin + 1)


def held_bytes(start: fx.Node, nodes: tuple[fx.Node, ...], places: Places) -> int:
    """Bytes that moving ``nodes`` may add anywhere on the way, and where they then stand.

    Operands and scratch of the reduction, what ``nodes`` read and make; its results only where
    nobody else reads them.
    """
    mine = set(nodes)
    values = [start, *start.all_input_nodes, *nodes]
    values += [source for node in nodes for source in node.all_input_nodes]
    sizes = {k: v for n in values if n in places.number for k, v in storages_of(n).items()}
    outside = {k for n in nodes for s in n.all_input_nodes if s.op == "placeholder"
               for k in storages_of(s)}  # fmt: skip
    outside |= {k for n in nodes if not mine.issuperset(n.users) for k in storages_of(n)}
    scratch = COLLECTIVES[start.target].scratch(start)
    return scratch + sum(size for key, size in sizes.items() if key not in outside)


def brought_forward(places: Places, tails: list[Tail], late: list[int], clock: Clock) -> list[int]:
    """The first place of each tail, up to ``late``, at which its reduction has ended."""
    moved = {node for _, nodes in groups(tails, late) for node in nodes}
    search, found, bound = Search(clock, places, moved), [], len(places.nodes)
    for tail, place in reversed(list(zip(tails, late, strict=True))):
        window, ends = tail.window, clock.ends[tail.start]
        place = search.first_behind(window.first, min(place, bound), ends)
        found.append(place)
        bound = window.bound(place)
    return found[::-1]


def groups(tails: list[Tail], found: list[int]) -> list[Group]:
    """The tails whose place in ``found`` is behind where they stand, to be moved there."""
    pairs = zip(tails, found, strict=True)
    return [(place, tail.nodes) for tail, place in pairs if place > tail.window.first]
