"""Runs a program on the lanes of a device, on paper: seconds, exposed communication, memory.

    timeline = simulate(program, device, fused=True)
    timeline.seconds, timeline.exposed_seconds, timeline.peak_bytes

The compute lane takes nodes in program order. A collective starts when it has been issued and its
lane is free; its first wait holds the compute lane until it has ended. While one is under way,
compute runs slower by the ``interference`` of the link that it passes. Deterministic, and linear in
the nodes that run.
"""

from collections import deque
from collections.abc import Mapping

from torch import fx

from zc.cost.device import Device
from zc.cost.lanes import COMPUTE, lane_of
from zc.cost.timeline import Span, Timeline
from zc.cost.times import node_seconds
from zc.program.collectives import group_size, is_collective, is_wait
from zc.program.liveness import memory_timeline
from zc.program.loops import as_executed
from zc.program.mesh import Mesh
from zc.program.program import Program
from zc.program.stamps import stamp_of


def simulate(
    program: Program,
    device: Device,
    *,
    fused: bool = True,
    seconds: Mapping[fx.Node, float] | None = None,
    memory: bool = True,
) -> Timeline:
    """The timeline of one step of the physical ``program`` on ``device``.

    Args:
        program: after its passes.
        device: what it runs on.
        fused: whether regions are compiled, for times; ``program.fused`` says it for memory.
        seconds: of each node, where they are known better than by ``node_seconds``.
        memory: whether to say how many bytes are live when.
    """
    lanes = _Lanes(device, program.mesh)
    for graph in program.graphs.values():
        costs = seconds or node_seconds(graph, program.mesh, device, fused=fused)
        ran = [node for node, _ in as_executed(graph) if node.op == "call_function"]
        before = len(lanes.timeline.ends)
        for node in ran:
            lanes.run(node, costs[node])
        if memory:
            points = memory_timeline(graph, fused=program.fused)
            live = {point.node: point.live_bytes for point in points}
            ends = lanes.timeline.ends[before:]
            lanes.timeline.memory += zip(ends, map(live.__getitem__, ran), strict=True)
    return lanes.finish()


class _Lanes:
    """Time on every lane so far."""

    def __init__(self, device: Device, mesh: Mesh) -> None:
        self.now = 0.0  # on the compute lane
        self.timeline = Timeline()
        self._device, self._mesh = device, mesh
        self._free: dict[str, float] = {}
        self._ends: dict[fx.Node, float] = {}
        self._under_way: deque[tuple[float, float, float]] = deque()  # start, end, interference

    def run(self, node: fx.Node, seconds: float) -> None:
        began = self.now
        if is_collective(node):
            self._issue(node, seconds)
        elif is_wait(node):
            self._wait(node)
        elif seconds:
            self._compute(node, seconds)
        phases, phase = self.timeline.phase_seconds, stamp_of(node).phase
        if self.now != began or phase not in phases:
            phases[phase] = phases.get(phase, 0.0) + self.now - began
        self.timeline.ends.append(self.now)

    def finish(self) -> Timeline:
        done = self.timeline
        done.seconds = max([self.now, *self._free.values()])
        done.exposed_seconds = self.now - done.compute_seconds
        done.peak_bytes = max((live for _, live in done.memory), default=0)
        return done

    def _issue(self, node: fx.Node, seconds: float) -> None:
        self.now += self._device.issue_seconds
        lane = lane_of(node, self._device)
        start = max(self.now, self._free.get(lane, 0.0))
        self._free[lane] = self._ends[node] = start + seconds
        link = self._device.slowest_link(group_size(node, self._mesh))
        self._under_way.append((start, start + seconds, link.interference))
        self._busy(node, lane, start, start + seconds)

    def _wait(self, node: fx.Node) -> None:
        source = node.all_input_nodes[0]
        if not is_collective(source) and source.all_input_nodes:
            source = source.all_input_nodes[0]  # an item of a coalesced one
        end = self._ends.pop(source, None)
        if end is not None:  # the first wait for it; the other items are there then
            self.now = max(self.now + self._device.issue_seconds, end)

    def _compute(self, node: fx.Node, seconds: float) -> None:
        start, left = self.now, seconds
        for begin, end, interference in self._under_way:
            free = max(0.0, min(left, begin - self.now))
            self.now, left = self.now + free, left - free
            if not left:
                break  # those behind it begin later, or find nothing to slow down
            speed = 1.0 - interference
            slow = max(0.0, end - self.now)
            if not slow:
                continue
            took = min(slow, left / speed) if speed else slow
            self.now, left = self.now + took, left - took * speed
        self.now += left
        while self._under_way and self._under_way[0][1] <= self.now:
            self._under_way.popleft()
        self.timeline.compute_seconds += seconds
        self._busy(node, COMPUTE, start, self.now)

    def _busy(self, node: fx.Node, lane: str, start: float, end: float) -> None:
        self.timeline.spans.append(Span(node, lane, start, end))
        lanes = self.timeline.lane_seconds
        lanes[lane] = lanes.get(lane, 0.0) + end - start
