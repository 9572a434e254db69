"""How much later a collective may start, and how much earlier be waited for, for the same time.

A plan that starts everything as early as memory allows holds gathered values for longer than they
help. Of all places at which a collective may start, the latest costs no time where it still ends
when its wait is reached, or, if the wait stands still for it, when it ended before, and where the
next collective on its lane starts no later. Going through the lane from its end, each gets the
latest start that keeps these promises; every wait then ends as before, so the step takes as long.
Likewise a wait is put at the first place that is reached when its collective has ended.
"""

from bisect import bisect_left
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from torch import fx

from zc.cost.device import Device
from zc.cost.lanes import COMPUTE
from zc.cost.timeline import Timeline
from zc.program.collectives import waits_of
from zc.program.loops import as_executed, loops_of
from zc.program.places import Places, anchors_of
from zc.program.program import Program

Turns = dict[fx.Node, list[float]]  # seconds of each node, once for every time that it runs


class Clock:
    """When each node of a simulated program runs.

    Attributes:
        reached: when the compute lane comes to each node.
        starts: when the lane of each collective takes it up.
        ends: when it lets go.
    """

    def __init__(self, program: Program, timeline: Timeline, device: Device) -> None:
        self.reached = _reached(program, timeline)
        self.starts: Turns = {}
        self.ends: Turns = {}
        self._lanes: list[tuple[fx.Node, str]] = []
        for span in timeline.spans:
            if span.lane != COMPUTE:
                self._lanes.append((span.node, span.lane))
                self.starts.setdefault(span.node, []).append(span.start)
                self.ends.setdefault(span.node, []).append(span.end)
        self._issue = device.issue_seconds

    def latest_starts(self) -> Turns:
        """The last second at which the lane may take up each collective."""
        found: Turns = {node: [0.0] * len(turns) for node, turns in self.starts.items()}
        left = {node: len(turns) for node, turns in self.starts.items()}
        before: dict[str, float] = {}
        for node, lane in reversed(self._lanes):
            left[node] -= 1
            turn = left[node]
            start, end = self.starts[node][turn], self.ends[node][turn]
            due = min(self._due(node, turn, end), before.get(lane, float("inf")))
            found[node][turn] = before[lane] = max(due - (end - start), start)
        return found

    def _due(self, node: fx.Node, turn: int, end: float) -> float:
        """When ``node`` must have ended so that its first wait ends as it did."""
        waits = [self.reached[w][turn] + self._issue for w in waits_of(node)]
        return max(end, min(waits, default=end))

    def reached_by(self, node: fx.Node, seconds: Sequence[float]) -> bool:
        """Whether ``node`` is reached in time to issue something at ``seconds``, at each turn."""
        there = zip(self.reached[node], seconds, strict=True)
        return all(now + self._issue <= due for now, due in there)

    def reached_after(self, node: fx.Node, seconds: Sequence[float]) -> bool:
        """Whether ``node`` is reached when a collective has ended at ``seconds``, at each turn."""
        there = zip(self.reached[node], seconds, strict=True)
        return all(now >= end for now, end in there)


def _reached(program: Program, timeline: Timeline) -> Turns:
    """The begin of a loop is reached once, its end at each turn."""
    found: Turns = {}
    ends = {loop.begin: loop.end for loop in loops_of(program.graph)}
    now, done = 0.0, iter(timeline.ends)
    for node, turn in as_executed(program.graph):
        if node.op in ("placeholder", "get_attr"):
            continue
        place = ends[node] if node in ends and turn else node
        found.setdefault(place, []).append(now)
        if node.op == "call_function":
            now = next(done)
    return found


class Search:
    """Looks for the gaps of a program that are reached in time, or late enough.

    ``moved`` are the nodes that stand elsewhere than ``places`` says.
    """

    def __init__(self, clock: Clock, places: Places, moved: AbstractSet[fx.Node]) -> None:
        self._clock, self._gaps = clock, places.gaps
        self._anchors = anchors_of(places, moved)

    def last_in_time(self, first: int, last: int, seconds: Sequence[float]) -> int:
        """The last place from ``first`` to ``last`` that is reached in time for ``seconds``."""
        if self._in_time(last, seconds):
            return last
        low, high = bisect_left(self._gaps, first), bisect_left(self._gaps, last)
        gaps = range(low, high)
        found = bisect_left(gaps, True, key=lambda i: not self._in_time(self._gaps[i], seconds))
        return max(first, self._gaps[low + found - 1]) if found else first

    def first_behind(self, first: int, last: int, seconds: Sequence[float]) -> int:
        """The first place from ``first`` to ``last`` that is reached after ``seconds``."""
        if self._behind(first, seconds):
            return first
        low, high = bisect_left(self._gaps, first), bisect_left(self._gaps, last)
        gaps = range(low, high)
        found = bisect_left(gaps, True, key=lambda i: self._behind(self._gaps[i], seconds))
        return self._gaps[low + found] if low + found < high else last

    def _in_time(self, place: int, seconds: Sequence[float]) -> bool:
        return self._clock.reached_by(self._anchors[place], seconds)

    def _behind(self, place: int, seconds: Sequence[float]) -> bool:
        return self._clock.reached_after(self._anchors[place], seconds)
