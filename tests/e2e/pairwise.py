"""A sample of a table of choices in which every pair of choices occurs (pairwise testing)."""

from collections.abc import Callable, Sequence
from itertools import combinations, product
from math import sqrt
from typing import Any

Row = tuple[Any, ...]


def pairwise(
    dimensions: Sequence[Sequence[Any]],
    cost: Callable[[Row], float] = lambda row: 1.0,
    given: Sequence[Row] = (),
) -> list[Row]:
    """Rows of the product of ``dimensions`` that cover all pairs; cheap rows are preferred.

    Greedy: the next row is the one with the most uncovered pairs over the root of its cost (over
    the cost itself, small gains win and rows grow many), the first of them in product order, so the
    same arguments always give the same rows. Those ``given`` come first.
    """
    rows = list(product(*dimensions))
    pairs = {row: frozenset(combinations(enumerate(row), 2)) for row in rows}
    chosen = list(given)
    uncovered = frozenset().union(*pairs.values()).difference(*(pairs[row] for row in chosen))
    while uncovered:
        best = max(rows, key=lambda row: len(pairs[row] & uncovered) / sqrt(cost(row)))
        uncovered -= pairs[best]
        chosen.append(best)
    return chosen
