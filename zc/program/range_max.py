"""A row of numbers that grow by ranges, asked for the nearest one above a limit.

    row = RangeMax([3, 5, 4])
    row.add(0, 2, 10)                  # 13, 15, 4
    row.last_above(0, 3, 12)           # 1
    row.first_above(0, 3, 12)          # 0

A tree of maxima: both take time that grows with the logarithm of the length.
"""

from collections.abc import Sequence

_NONE = -1


class RangeMax:
    """Numbers by position, from 0; ranges are half open."""

    def __init__(self, values: Sequence[int]) -> None:
        self._width = 1 << max(len(values) - 1, 0).bit_length()
        floor = min(values, default=0)
        self._top = [floor] * self._width + list(values)
        self._top += [floor] * (2 * self._width - len(self._top))
        self._added = [0] * (2 * self._width)
        self._length = len(values)
        for node in range(self._width - 1, 0, -1):
            self._top[node] = max(self._top[2 * node], self._top[2 * node + 1])

    def add(self, begin: int, end: int, amount: int) -> None:
        """Add ``amount`` to the numbers from ``begin`` to before ``end``."""
        self._add(1, 0, self._width, (begin, min(end, self._length)), amount)

    def first_above(self, begin: int, end: int, limit: int) -> int | None:
        """The first position in the range whose number is above ``limit``."""
        return self._ask(begin, end, limit, right_first=False)

    def last_above(self, begin: int, end: int, limit: int) -> int | None:
        """The last position in the range whose number is above ``limit``."""
        return self._ask(begin, end, limit, right_first=True)

    def _ask(self, begin: int, end: int, limit: int, *, right_first: bool) -> int | None:
        span = (begin, min(end, self._length))
        found = self._find(1, 0, self._width, span, limit, right_first)
        return None if found == _NONE else found

    def _add(self, node: int, left: int, right: int, span: tuple[int, int], amount: int) -> None:
        if right <= span[0] or span[1] <= left:
            return
        if span[0] <= left and right <= span[1]:
            self._top[node] += amount
            self._added[node] += amount
            return
        middle = (left + right) // 2
        self._add(2 * node, left, middle, span, amount)
        self._add(2 * node + 1, middle, right, span, amount)
        below = max(self._top[2 * node], self._top[2 * node + 1])
        self._top[node] = below + self._added[node]

    def _find(
        self, node: int, left: int, right: int, span: tuple[int, int], limit: int, last: bool
    ) -> int:
        if right <= span[0] or span[1] <= left or self._top[node] <= limit:
            return _NONE
        if right - left == 1:
            return left
        limit -= self._added[node]
        middle = (left + right) // 2
        halves = [(2 * node, left, middle), (2 * node + 1, middle, right)]
        for half in reversed(halves) if last else halves:
            found = self._find(*half, span, limit, last)
            if found != _NONE:
                return found
        return _NONE
