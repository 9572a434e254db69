"""Headroom: may a value live longer without raising a phase's predicted peak?

    room = Headroom(graph)
    if live_on(outside, room, earlier, node):   # may the first live on, in place of the second?
        node.replace_all_uses_with(earlier)

Live bytes are those of ``zc.program.liveness``. What was granted counts as used from then on, and
bytes that it saves elsewhere do not count, so peaks stay at most where they were.
"""

from dataclasses import dataclass, field

from torch import fx

from zc.program.liveness import lives_of, timeline_of
from zc.program.nodes import tensors_of
from zc.program.outside import Outside
from zc.program.stamps import stamp_of
from zc.program.storages import storages_of


@dataclass
class Headroom:
    """Bytes below the peak of its phase at each computed node, and the life of each storage.

    Inputs and constants live throughout, and are none of ``lives``.
    """

    graph: fx.Graph
    sizes: dict[int, int] = field(init=False)
    lives: dict[int, tuple[int, int]] = field(init=False)
    free: "LeastTree" = field(init=False)

    def __post_init__(self) -> None:
        lives, nodes = lives_of(self.graph), list(self.graph.nodes)
        timeline = timeline_of(self.graph, lives)
        order = {point.node: index for index, point in enumerate(timeline)}
        order[nodes[-1]] = len(timeline)
        given = [node for node in nodes if node.op in ("placeholder", "get_attr")]
        throughout = {key for node in given for key in storages_of(node)}
        self.lives = {
            key: (order.get(life.owner, -1), order.get(nodes[life.last], -1))
            for key, life in lives.items()
            if key not in throughout
        }
        self.sizes = {key: life.nbytes for key, life in lives.items()}
        phases = [stamp_of(point.node).phase for point in timeline]
        peaks: dict[str, int] = {}
        for phase, (_, live) in zip(phases, timeline, strict=True):
            if live > peaks.get(phase, 0):
                peaks[phase] = live
        room = [peaks[p] - live for p, (_, live) in zip(phases, timeline, strict=True)]
        self.free = LeastTree([*room, 0])

    def fits(self, first: int, second: int, size: int, instead: int) -> bool:
        """Whether storage ``first`` may live on in place of ``second``, until that one dies.

        It has ``size`` bytes, and ``instead`` are those of ``second``, which is then not there.
        """
        stretches = self._stretches(first, second, size, instead)
        return all(self.free.least(begin, end) >= more for begin, end, more in stretches)

    def keep(self, first: int, second: int, size: int, instead: int) -> None:
        """Let storage ``first`` live on as long as ``second`` does."""
        for begin, end, more in self._stretches(first, second, size, instead):
            self.free.add(begin, end, -more)
        born, died = self.lives[first]
        self.lives[first] = (born, max(died, self.lives[second][1]))

    def _stretches(
        self, first: int, second: int, size: int, instead: int
    ) -> list[tuple[int, int, int]]:
        """Where it adds bytes, and how many: up to the beginning of ``second``, and from there."""
        end, (born, died) = self.lives[first][1] + 1, self.lives[second]
        found = [(end, born, size), (max(end, born), died + 1, size - instead)]
        return [(begin, end, more) for begin, end, more in found if begin < end and more > 0]


def live_on(outside: Outside, room: Headroom, earlier: fx.Node, node: fx.Node) -> bool:
    """Let ``earlier`` live as long as ``node`` does, if there is room for that."""
    tensors = zip(tensors_of(earlier), tensors_of(node), strict=True)
    moves = {(outside.storage(kept)[0], outside.storage(gone)[0]): None for kept, gone in tensors}
    moves = [(a, b) for a, b in moves if a != b and a in room.lives and b in room.lives]
    together = sum(room.sizes[a] for a, _ in moves), sum(room.sizes[b] for _, b in moves)
    if not all(room.fits(*move, *together) for move in moves):
        return False
    for first, second in moves:
        room.keep(first, second, room.sizes[first], room.sizes[second])
    return True


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
