"""Two bounds of a step: as its nodes stand, and as it would be if all overlapped that can.

Passes that start gathers early and wait for reductions late run behind those that decide what is
one collective. What these decide must not cost more overlap later than it saves now: large buckets
spare latencies, and what is first needed from one waits for all of it. As it stands, a program has
its collectives exposed. At best, each starts as soon as its operands are there and its lane is
free, and only who reads its result waits for it, whatever memory that takes; waiting takes the host
no time, casts and sums of reduced gradients wait aside, and gathers for backward start behind
forward. That is the critical path of the program as a task graph; gathers keep their order, and
reductions theirs. Where links do not interfere with compute, the step that later passes make lies
between the two, and where they do, about there: a rewrite helps where it shortens the one and does
not lengthen the other.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from zc.cost.balance import Balance
from zc.cost.device import Device
from zc.cost.trial import NOISE, step_of, times_note
from zc.program.collectives import (
    COLLECTIVES,
    group_size,
    is_collective,
    is_wait,
    start_of,
)
from zc.program.loops import as_executed
from zc.program.places import places_in
from zc.program.program import Program

aten: Any = torch.ops.aten
_SETTLING = (aten._to_copy.default, aten.add_.Tensor)


class Overlapping(Balance):
    """As ``Balance``, for rewrites of collectives; the step must not get longer at best."""

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self._best = self._best_now()

    def why_not(self) -> str:
        """See ``Balance``."""
        before, after = self._best, self._best_now()
        if after > before * (1 + NOISE):
            return f"keeps more waiting than it spares: at best, {times_note(before, after)}"
        idle = self.program.device is not None and not self.is_shorter()
        return "does not shorten the step" if idle else ""

    def _best_now(self) -> float:
        device = self.program.device
        if device is None:
            return 0.0
        return overlapped_seconds(self.program, device, step_of(self.program, device).seconds)


def overlapped_seconds(program: Program, device: Device, seconds: Mapping[fx.Node, float]) -> float:
    """The step of ``program`` at best, of which each node takes ``seconds``.

    Where links interfere with compute, what overlaps takes as much longer.
    """
    places, lanes = places_in(program), _Lanes(device)
    began: dict[int, float] = {}  # when a stretch was entered, by its first place
    there: dict[fx.Node, float] = {}  # when a value is
    reductions = {n for n in places.nodes if is_collective(n) and _reduces(n)}
    reduced: set[fx.Node] = set()
    for node, _ in as_executed(program.graph):
        if node.op != "call_function":
            continue
        number = places.number[node]
        first = places.begins[number]
        if number == first:
            began[first] = lanes.now
        ready = max((there.get(source, 0.0) for source in node.all_input_nodes), default=0.0)
        if is_collective(node):
            link = device.slowest_link(group_size(node, program.mesh))
            ready = max(ready, began[first])
            there[node] = lanes.carry(node, ready, seconds[node], link.interference)
        elif is_wait(node):
            there[node] = ready
            if start_of(node) in reductions:
                reduced.add(node)
        else:
            aside = node.target in _SETTLING and not reduced.isdisjoint(node.all_input_nodes)
            there[node] = lanes.compute(ready, seconds[node], aside=aside)
            if aside:
                reduced.add(node)
    return lanes.end()


def _reduces(start: fx.Node) -> bool:
    return COLLECTIVES[start.target].lane == "reduce"


class _Lanes:
    """Time on every lane so far; lanes that carry collectives take them in order."""

    def __init__(self, device: Device) -> None:
        self.now = 0.0
        self._device = device
        self._free: dict[str, float] = {}
        self._computed = self._carried = self._disturbed = 0.0

    def carry(self, node: fx.Node, ready: float, seconds: float, interference: float) -> float:
        """Carry out a collective whose operands are ``ready``; when it has ended."""
        self.now += self._device.issue_seconds
        lane = COLLECTIVES[node.target].lane  # where they share one, who comes first is open
        end = max(ready, self._free.get(lane, 0.0)) + seconds
        self._free[lane] = end
        self._carried += seconds
        self._disturbed += seconds * interference
        return end

    def compute(self, ready: float, seconds: float, *, aside: bool) -> float:
        """Compute what has its operands when they are ``ready``; when it is there.

        What is computed ``aside`` keeps the lane, and does not keep others waiting.
        """
        if not seconds:
            return ready
        self.now = (self.now if aside else max(self.now, ready)) + seconds
        self._computed += seconds
        return max(self.now, ready + seconds)

    def end(self) -> float:
        """When all lanes are through."""
        end = max([self.now, *self._free.values()])
        if self._device.one_lane:
            end = max(end, self._carried)
        hidden = max(0.0, self._carried - (end - self._computed))
        return end + (self._disturbed * hidden / self._carried if hidden else 0.0)
