"""The knapsack: exact where a unit divides everything, never too full elsewhere."""

from itertools import combinations

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from zc.cost.knapsack import UNITS, best_choice, unit_of

Items = list[tuple[int, int, int]]  # value, size, room up to here
small = st.integers(0, 9)
items = st.lists(st.tuples(small, small, st.integers(-3, 25)), max_size=12)


def fits(chosen: tuple[int, ...] | list[int], sizes: list[int], rooms: list[int]) -> bool:
    sums = [[sizes[i] for i in chosen if i <= k] for k in range(len(rooms))]
    return all(not sum(s) or sum(s) <= room for s, room in zip(sums, rooms, strict=True))


@settings(max_examples=60, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(items)
def test_no_choice_is_better(given_items: Items):
    values, sizes, rooms = ([item[i] for item in given_items] for i in range(3))
    every = [c for n in range(len(sizes) + 1) for c in combinations(range(len(sizes)), n)]
    best = max(sum(values[i] for i in c) for c in every if fits(c, sizes, rooms))
    chosen = best_choice(values, sizes, rooms)
    assert fits(chosen, sizes, rooms)
    assert sum(values[i] for i in chosen) == best


@settings(max_examples=30, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(st.lists(st.tuples(small, st.integers(1, 10**12)), min_size=1, max_size=12), st.data())
def test_rounded_sizes_never_overrun(pairs: list[tuple[int, int]], data: st.DataObject):
    values, sizes = [v for v, _ in pairs], [s for _, s in pairs]
    rooms = [data.draw(st.integers(0, sum(sizes))) for _ in sizes]
    assert fits(best_choice(values, sizes, rooms), sizes, rooms)


@pytest.mark.parametrize(
    ("values", "sizes", "room", "chosen"),
    [
        ([60, 100, 120], [10, 20, 30], 50, [1, 2]),  # by value per size, 0 and 1
        ([1, 1, 1], [5, 5, 5], 10, [1, 2]),
        ([1, 2], [5, 5], -1, []),
        ([], [], 0, []),
    ],
)
def test_known_choices(values: list[int], sizes: list[int], room: int, chosen: list[int]):
    assert best_choice(values, sizes, [room] * len(sizes)) == chosen


def test_a_unit_divides_all_sizes_as_long_as_tables_stay_small():
    assert unit_of([6, 9], 3 * UNITS) == 3
    assert unit_of([6, 9], 3 * UNITS + 1) == 6
