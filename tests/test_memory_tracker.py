"""The storage tracker."""

import torch
from memory_tracker import MemoryTracker

KIB = 1024


def test_storages_count_until_they_die() -> None:
    held = torch.zeros(256)
    with MemoryTracker([held]) as tracker:
        a = held + 1
        b = torch.cat([a, held])
        assert tracker.live_bytes == 4 * KIB
        del a
        assert tracker.live_bytes == 3 * KIB
        del b
        held + 1
    assert (tracker.live_bytes, tracker.peak_bytes) == (KIB, 4 * KIB)


def test_views_and_writes_cost_nothing() -> None:
    with MemoryTracker() as tracker:
        a = torch.zeros(256)
        b = a.view(16, 16).t()
        a.add_(1)
        del a
        assert tracker.live_bytes == KIB
        del b
    assert (tracker.live_bytes, tracker.peak_bytes) == (0, KIB)


def test_what_a_tracker_did_not_see_made_counts_when_it_is_read() -> None:
    before = torch.zeros(256)
    with MemoryTracker() as tracker:
        before.sum()
        assert tracker.live_bytes == KIB
    assert tracker.peak_bytes == KIB + 4


def test_a_tracker_may_be_entered_again() -> None:
    tracker = MemoryTracker()
    with tracker:
        a = torch.zeros(256)
    del a
    with tracker:
        torch.zeros(512)
    assert (tracker.live_bytes, tracker.peak_bytes) == (0, 2 * KIB)
