"""Minimum cuts: against trying all that could be saved; the cheapest choice that computes least."""

from itertools import chain, combinations

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from zc.program.min_cut import Choice, computed_again

Values = dict[int, Choice]


@st.composite
def values(draw: st.DrawFn) -> tuple[Values, list[int]]:
    """Values in order, each computed from earlier ones or not at all, and those that are wanted."""
    found: Values = {}
    for value in range(draw(st.integers(2, 7))):
        earlier = (
            st.lists(st.sampled_from(range(value)), max_size=2, unique=True) if value else None
        )
        operands = draw(st.none() | earlier) if earlier is not None else None
        operands = None if operands is None else tuple(operands)
        cost = draw(st.sampled_from([None, 0, 1, 2, 3, 5, 8]))
        found[value] = Choice(cost, operands)
    can = [value for value, choice in found.items() if choice.operands is not None and choice.cost]
    return found, draw(st.lists(st.sampled_from(can), unique=True)) if can else []


def again_with(choices: Values, wanted: list[int], saved: set[int]) -> set[int] | None:
    """What is computed again when ``saved`` is; ``None`` where that is not possible."""
    again, pending = set(), list(wanted)
    while pending:
        value = pending.pop()
        if value in saved or value in again or choices[value].cost == 0:
            continue
        operands = choices[value].operands
        if operands is None:
            return None
        again.add(value)
        pending += operands
    return again


def cheapest(choices: Values, wanted: list[int]) -> tuple[int, int]:
    """The least cost of what must be saved, and the fewest values computed again at that cost."""
    may = [value for value, choice in choices.items() if choice.cost]
    sets = chain.from_iterable(combinations(may, count) for count in range(len(may) + 1))
    found = []
    for saved in map(set, sets):
        again = again_with(choices, wanted, saved)
        if again is not None:
            found.append((sum(choices[value].cost or 0 for value in saved), len(again)))
    return min(found)


def cost_of(choices: Values, wanted: list[int], again: set[int]) -> int:
    """What is read by ``again`` and ``wanted`` and not computed again is saved."""
    read = {*wanted, *(o for value in again for o in choices[value].operands or ())} - again
    costs = [choices[value].cost for value in read]
    assert None not in costs
    return sum(cost for cost in costs if cost is not None)


@settings(max_examples=200, phases=(Phase.explicit, Phase.generate))
@given(values())
def test_as_cheap_as_the_best_of_all_choices(case: tuple[Values, list[int]]):
    choices, wanted = case
    again = computed_again(choices, wanted)
    needed = again_with(choices, wanted, set(choices) - again)
    assert needed is not None
    cost, count = cheapest(choices, wanted)
    assert cost_of(choices, wanted, needed) == cost
    assert len(needed) == count


def test_equal_costs_compute_nothing_again():
    choices = {"mm": Choice(8, None), "relu": Choice(8, ("mm",))}
    assert computed_again(choices, ["relu"]) == set()


def test_one_value_for_two():
    choices = {"mm": Choice(8, None), "a": Choice(5, ("mm",)), "b": Choice(5, ("mm",))}
    assert computed_again(choices, ["a", "b"]) == {"a", "b"}


def test_nothing_wanted():
    assert computed_again({"mm": Choice(8, None)}, []) == set()
