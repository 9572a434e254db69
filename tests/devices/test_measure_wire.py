"""What a collective costs in a step, on a clock of its own."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from zc.comm import choice
from zc.devices import calibrate, measure_wire

GROUP: Any = None


class Clock:
    """A stopwatch whose time passes only where a test says so."""

    repeats = 2
    now = 0.0  # seconds

    def once(self, function: Callable[[], Any]) -> float:
        start = self.now
        function()
        return self.now - start


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The ranks of a group are always in step with one another."""
    monkeypatch.setattr(measure_wire.dist, "barrier", lambda group: None)
    return Clock()


@pytest.mark.parametrize(
    ("behind_compute", "by_itself", "expected"),
    [
        (3.0, 1.0, 3.0),  # what it adds to compute
        (0.5, 2.0, 2.0),  # no less than by itself
    ],
)
def test_what_a_collective_takes(
    behind_compute: float, by_itself: float, expected: float, clock: Any
):
    computed = False

    def compute() -> None:
        nonlocal computed
        computed = True
        clock.now += 5.0

    def collective() -> None:
        nonlocal computed
        clock.now += behind_compute if computed else by_itself
        computed = False

    assert measure_wire._added(clock, GROUP, compute, collective) == expected


@pytest.fixture
def _no_measured_ways() -> Iterator[None]:
    yield
    choice.use_measured({})


@pytest.mark.usefixtures("_no_measured_ways")
def test_collectives_are_measured_as_all_ranks_will_carry_them_out(
    monkeypatch: pytest.MonkeyPatch,
):
    mine = {"way all_gather 65536 native": 2.0, "way all_gather 65536 pairwise": 1.0}
    peer = {"way all_gather 65536 native": 2.0, "way all_gather 65536 pairwise": 3.0}

    def gather(ranks: list[Any], figures: Any, group: Any) -> None:
        ranks[:] = [figures, peer]

    monkeypatch.setattr(calibrate.dist, "get_world_size", lambda group: 2)
    monkeypatch.setattr(calibrate.dist, "all_gather_object", gather)
    choice.use_measured({"gloo": {"all_gather": {2: {0: "pairwise"}}}})
    assert calibrate._agreed_ways(mine, GROUP) == mine
    assert choice.way("all_gather", "gloo", 2, 1 << 20) == "native"
