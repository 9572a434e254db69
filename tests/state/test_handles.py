"""Handles: the same for the same object, never that of one that is gone."""

import gc

import pytest

from zc.errors import ShardError
from zc.state.handles import Handles


class Thing:
    pass


def test_a_handle_holds_on_to_nothing_and_is_not_given_again():
    forgotten: list[int] = []
    handles = Handles[Thing]("the thing is gone", forget=forgotten.append)
    first, second = Thing(), Thing()
    assert [handles.of(x) for x in (first, second, first)] == [(0, True), (1, True), (0, False)]
    assert handles.get(1) is second
    del second
    gc.collect()
    assert forgotten == [1]
    with pytest.raises(ShardError) as error:
        handles.get(1)
    assert str(error.value) == "the thing is gone"
    third = Thing()
    assert handles.of(third) == (2, True)
