"""The 0/1 knapsack problem: which items of most value together fit into the room there is.

Room may depend on the item: what is chosen among the first k items must fit into ``rooms[k]``. That
is the shape of memory kept from forward to backward, where the first weight is kept for longest: a
value that is kept is there together with those whose time has its own inside.

Dynamic programming over room (Bellman; Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004,
section 2.3): ``best[r]`` is the most value of the first k items in exactly ``r`` units, and an item
is taken or left: ``best[r] = max(best[r], best[r - size] + value)`` for every r up to
``rooms[k]``. A unit is the greatest common divisor of all sizes, which makes the choice exact, as
long as the room has no more than ``UNITS`` of them. Otherwise it is a larger multiple of it, sizes
are rounded up and rooms down: room is never overrun, and the choice is the best one for sizes of
which each is too large by less than a unit.
"""

import math
from collections.abc import Sequence

import numpy as np

UNITS = 1 << 16
_CELLS = 1 << 26  # of the table that remembers what was taken
_NEVER = -(1 << 62)  # the value of room that nothing fills


def best_choice(values: Sequence[int], sizes: Sequence[int], rooms: Sequence[int]) -> list[int]:
    """Indices, in order, of the items of most value that fit.

    Of choices of the same value, one of the smallest size, and of these the one with later items.
    Values and sizes are not negative.

    Args:
        values: of each item, at most 2^61 together.
        sizes: of each item.
        rooms: for each item, what the sizes chosen up to it may add up to; below 0, none that
            has a size is chosen.
    """
    most = max([0, *rooms])
    unit = unit_of(sizes, most)
    sizes = [-(-size // unit) for size in sizes]
    best = np.full(min(most // unit, sum(sizes)) + 1, _NEVER, dtype=np.int64)
    best[0] = 0
    taken = []
    for value, size, room in zip(values, sizes, rooms, strict=True):
        end = max(min(room // unit + 1, len(best)), 1)
        mine = np.zeros(len(best), dtype=bool)
        if size < end:
            more = best[: end - size] + value
            mine[size:end] = more >= best[size:end]
            best[size:end] = np.maximum(more, best[size:end])
        best[end:] = _NEVER
        taken.append(mine)
    return _traced_back(taken, sizes, int(best.argmax()))


def unit_of(sizes: Sequence[int], room: int) -> int:
    """The unit to count in: what divides all ``sizes``, or a multiple that keeps tables small."""
    common = math.gcd(*sizes) or 1
    units = max(min(UNITS, _CELLS // max(len(sizes), 1)), 1)
    return common * max(-(-room // (common * units)), 1)


def _traced_back(taken: Sequence[np.ndarray], sizes: Sequence[int], room: int) -> list[int]:
    found = []
    for item in range(len(taken) - 1, -1, -1):
        if taken[item][room]:
            found.append(item)
            room -= sizes[item]
    return found[::-1]
