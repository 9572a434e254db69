"""Training with direct transfers beside training with messages: the same bits and bytes."""

import warnings
from typing import Any

import pytest
import torch
from e2e.bucket_runs import Run, train
from multiprocess import run_ranks

from zc.comm.choice import use_measured
from zc.comm.direct import READ, possible

CASES = [("level 1", 1), ("level 1", 3), ("level 2", 2), ("level 2", 3), ("micro-batches", 3)]
Case = tuple[str, int]


def train_all(rank: int, world: int) -> dict[Case, tuple[Run, Run, int]] | None:
    warnings.simplefilter("ignore")
    if not possible(torch.distributed.group.WORLD):
        return None
    found = {}
    for case in CASES:
        messages = train(*case, ["bucket_collectives"], rank)
        use_measured({"gloo": {op: {0: {0: "direct"}} for op in ("all_gather", "reduce_scatter")}})
        before = READ.nbytes
        direct = train(*case, ["bucket_collectives"], rank)
        use_measured({})
        found[case] = (messages, direct, READ.nbytes - before)
    return found


@pytest.fixture(scope="module")
def results() -> list[dict[Case, Any]]:
    found = run_ranks(train_all, 2, timeout=200)
    if None in found:
        pytest.skip("processes may not read each other's memory here")
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bits_and_bytes_are_the_same(results: list[dict[Case, Any]], case: Case):
    for found in results:
        messages, direct, read = found[case]
        assert direct.losses == messages.losses
        assert direct.sent == messages.sent
        assert sum(direct.sent.values()) == read
        assert direct.state.keys() == messages.state.keys()
        assert all(torch.equal(v, messages.state[k]) for k, v in direct.state.items())
