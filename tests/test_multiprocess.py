import os
import time

import pytest
import torch
import torch.distributed as dist
from multiprocess import RanksFailed, outcomes_of, run_ranks


def add_up(rank: int, world: int, base: float) -> torch.Tensor:
    value = torch.full((2,), base + rank)
    dist.all_reduce(value)
    return value


def fail_on_one(rank: int, world: int) -> None:
    if rank == 1:
        raise ValueError("rank 1 is unhappy")


def die_on_one(rank: int, world: int) -> str:
    if rank == 1:
        os._exit(7)
    try:
        dist.all_reduce(torch.ones(1))
    except RuntimeError:
        return "noticed"
    return "missed"


def sleep_forever(rank: int, world: int) -> None:
    time.sleep(1000)


def test_results_come_back_by_rank():
    results = run_ranks(add_up, 2, 1.0)
    assert all(torch.equal(r, torch.tensor([3.0, 3.0])) for r in results)


def test_a_failure_carries_its_traceback():
    with pytest.raises(RanksFailed, match="rank 1 is unhappy"):
        run_ranks(fail_on_one, 2)


def test_a_dead_rank_is_reported_and_the_other_one_notices():
    alive, dead = outcomes_of(die_on_one, 2)
    assert alive.result == "noticed"
    assert dead.error == "ended without a result, exit code 7"


def test_nothing_hangs():
    began = time.monotonic()
    outcomes = outcomes_of(sleep_forever, 1, timeout=8)
    assert outcomes[0].error == "ended without a result, exit code -9"
    assert time.monotonic() - began < 15
