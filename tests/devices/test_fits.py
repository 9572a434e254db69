"""Fits on made-up measurements whose answer is known."""

import math
import random

import pytest

from zc.devices.fits import fit_link, interference, shares_a_lane, slowest, two_rates

SIZES = [4096 << shift for shift in range(0, 13, 2)]
SPREAD = 0.05  # of made-up measurements around the line
FIT = 0.10  # both numbers then come back to within this


@pytest.mark.parametrize(("latency", "bandwidth"), [(1e-6, 1e9), (4e-4, 2e9), (1e-2, 1e8)])
def test_a_line_is_found_again(latency: float, bandwidth: float):
    link = fit_link([(n, latency + n / bandwidth) for n in SIZES])
    assert link.latency == pytest.approx(latency, rel=1e-6)
    assert link.bandwidth == pytest.approx(bandwidth, rel=1e-6)


def test_both_ends_of_a_noisy_line_fit():
    draw = random.Random(0)
    noisy = [(n, (2e-4 + n / 1e9) * draw.uniform(1 - SPREAD, 1 + SPREAD)) for n in SIZES]
    link = fit_link(noisy)
    for n in (SIZES[0], SIZES[-1]):
        assert link.seconds(n) == pytest.approx(2e-4 + n / 1e9, rel=FIT)


def test_no_number_becomes_negative():
    bent = fit_link([(n, n**1.2 / 1e9) for n in SIZES])
    assert bent.latency == 0
    assert bent.bandwidth > 0
    flat = fit_link([(1000, 2.0), (2000, 1.9), (4000, 1.8)])
    assert flat.latency > 0
    assert flat.bandwidth == 4000 / 1.8


def test_what_caches_hold_has_a_rate_of_its_own():
    assert two_rates([(10, 1.0), (100, 10.0), (1000, 200.0), (10000, 2000.0)]) == (100, 10.0, 5.0)
    assert two_rates([(10, 1.0), (1000, 50.0)]) == (0.0, 20.0, 20.0)


@pytest.mark.parametrize(
    ("together", "share"), [(3.0, 0.0), (2.9, 0.0), (4.0, 0.5), (5.0, 1.0), (9.0, 1.0)]
)
def test_interference_is_what_is_not_hidden(together: float, share: float):
    assert interference(3.0, 2.0, together) == share


@pytest.mark.parametrize(("together", "shared"), [(3.0, False), (3.9, False), (4.1, True)])
def test_lanes_are_shared_when_times_add_up(together: float, shared: bool):
    assert shares_a_lane(3.0, 2.0, together) is shared


def test_the_slowest_rank_counts():
    assert slowest([{"a": 1.0, "b": 4.0, "c": 9.0}, {"a": 2.0, "b": 3.0}]) == {
        "a": 2.0, "b": 4.0, "c": 9.0,
    }  # fmt: skip
    assert math.isfinite(slowest([{"a": 1.0}])["a"])
