"""RangeMax does what a list does."""

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from zc.program.range_max import RangeMax

number = st.integers(-5, 5)
place = st.integers(0, 12)


@settings(max_examples=100, phases=[Phase.explicit, Phase.generate])
@given(st.lists(number, max_size=11), st.lists(st.tuples(place, place, number), max_size=8))
def test_as_a_list(values: list[int], changes: list[tuple[int, int, int]]):
    row = RangeMax(values)
    for begin, end, amount in changes:
        row.add(begin, end, amount)
        values = [v + amount if begin <= i < end else v for i, v in enumerate(values)]
        above = [i for i in range(begin, min(end, len(values))) if values[i] > amount]
        assert row.first_above(begin, end, amount) == min(above, default=None)
        assert row.last_above(begin, end, amount) == max(above, default=None)
