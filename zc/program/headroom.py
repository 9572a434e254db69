"""Headroom: may a value live longer without raising a phase's predicted peak?

    room = Headroom(graph)
    if room.fits(first, second):   # storages: may the first live on, in place of the second?
        room.keep(first, second)

Live bytes are those of ``zc.program.liveness``. What was granted counts as used from then on, and
bytes that it saves elsewhere do not count, so peaks stay at most where they were.
"""

from dataclasses import dataclass, field

from torch import fx

from zc.program.liveness import memory_timeline, storage_lives
from zc.program.stamps import stamp_of


@dataclass
class Headroom:
    """Bytes below the peak of its phase at each computed node, and the life of each storage."""

    graph: fx.Graph
    lives: dict[int, tuple[int, int]] = field(init=False)
    free: "LeastTree" = field(init=False)

    def __post_init__(self) -> None:
        timeline = memory_timeline(self.graph)
        order = {point.node: index for index, point in enumerate(timeline)}
        order[self.graph.output_node()] = len(timeline)
        found = storage_lives(self.graph)
        self.lives = {k: (order.get(a, -1), order.get(b, -1)) for k, (a, b) in found.items()}
        phases = [stamp_of(point.node).phase for point in timeline]
        peaks: dict[str, int] = {}
        for phase, point in zip(phases, timeline, strict=True):
            peaks[phase] = max(peaks.get(phase, 0), point.live_bytes)
        room = [peaks[p] - point.live_bytes for p, point in zip(phases, timeline, strict=True)]
        self.free = LeastTree([*room, 0])

    def fits(self, first: int, second: int, size: int) -> bool:
        """Whether storage ``first``, of ``size`` bytes, may live until ``second`` begins."""
        begin, end = self._gap(first, second)
        return begin >= end or self.free.least(begin, end) >= size

    def keep(self, first: int, second: int, size: int) -> None:
        """Let storage ``first`` live on as long as ``second`` does."""
        begin, end = self._gap(first, second)
        if begin < end:
            self.free.add(begin, end, -size)
        born, died = self.lives[first]
        self.lives[first] = (born, max(died, self.lives[second][1]))

    def _gap(self, first: int, second: int) -> tuple[int, int]:
        """Places where neither lives, from the end of ``first`` to the beginning of ``second``."""
        return self.lives[first][1] + 1, self.lives[second][0]


class LeastTree:
    """Numbers in a row: the least of a stretch, and adding to a stretch, in logarithmic time.

    A segment tree; what was added to a whole stretch is kept at its node.
    """

    def __init__(self, values: list[int]) -> None:
        size = 1
        while size < len(values):
            size *= 2
        self.size = size
        self.lows = [0] * size + values + [0] * (size - len(values))
        self.added = [0] * (2 * size)
        for node in range(size - 1, 0, -1):
            self.lows[node] = min(self.lows[2 * node], self.lows[2 * node + 1])

    def least(self, begin: int, end: int) -> int:
        """The least of ``values[begin:end]``, which must not be empty."""
        return self._visit(1, 0, self.size, (begin, end), 0)

    def add(self, begin: int, end: int, amount: int) -> None:
        """Add ``amount`` to each of ``values[begin:end]``."""
        self._visit(1, 0, self.size, (begin, end), amount)

    def _visit(self, node: int, left: int, right: int, span: tuple[int, int], amount: int) -> int:
        """Add to the part of ``span`` below ``node``; the least of that part."""
        if span[0] <= left and right <= span[1]:
            self.lows[node] += amount
            self.added[node] += amount
            return self.lows[node]
        middle, found = (left + right) // 2, []
        if span[0] < middle:
            found.append(self._visit(2 * node, left, middle, span, amount))
        if span[1] > middle:
            found.append(self._visit(2 * node + 1, middle, right, span, amount))
        if amount:
            children = self.lows[2 * node], self.lows[2 * node + 1]
            self.lows[node] = min(children) + self.added[node]
        return min(found) + self.added[node]
