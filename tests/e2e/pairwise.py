"""A sample of a table of choices in which every pair of choices occurs (pairwise testing)."""

from collections.abc import Callable, Sequence
from itertools import combinations, product
from typing import Any

Row = tuple[Any, ...]


def pairwise(
    dimensions: Sequence[Sequence[Any]], cost: Callable[[Row], float] = lambda row: 1.0
) -> list[Row]:
    """Rows of the product of ``dimensions`` that cover all pairs; cheap rows are preferred.

    Greedy: the next row is the one with the most uncovered pairs for its cost, the first of them
    in product order, so the same arguments always give the same rows.
    """
    rows = list(product(*dimensions))
    pairs = {row: frozenset(combinations(enumerate(row), 2)) for row in rows}
    uncovered = frozenset().union(*pairs.values())
    chosen = []
    while uncovered:
        best = max(rows, key=lambda row: len(pairs[row] & uncovered) / cost(row))
        uncovered -= pairs[best]
        chosen.append(best)
    return chosen
