"""Capture and execution on two ranks: everything trains as DDP does, or says what to change."""

import traceback

import pytest
import torch
import torch.distributed as dist
from capture import refuses_alike, trains_alike
from multiprocess import run_ranks

pytestmark = pytest.mark.timeout(600)  # for all checks together, on a busy machine
CHECKS = trains_alike.CHECKS | refuses_alike.CHECKS
CASES = [(name, level) for name, (_, levels) in CHECKS.items() for level in levels]
Case = tuple[str, int]


def run_checks(rank: int, world: int, cases: list[Case]) -> dict[Case, str]:
    """The traceback of every check that failed on this rank."""
    failed = {}
    for name, level in cases:
        torch._dynamo.reset()
        dist.barrier()
        try:
            CHECKS[name][0](rank, level)
        except Exception:
            failed[name, level] = traceback.format_exc()
    return failed


@pytest.fixture(scope="module")
def failures(request: pytest.FixtureRequest) -> list[dict[Case, str]]:
    """By rank, what failed of the checks that were selected: one start for all of them."""
    selected = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    cases = [p["case"] for p in selected if p.get("case") in CASES]
    return run_ranks(run_checks, 2, cases, timeout=550)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-level{case[1]}")
def test_on_two_ranks(case: Case, failures: list[dict[Case, str]]):
    for rank, failed in enumerate(failures):
        assert case not in failed, f"rank {rank}:\n{failed[case]}"
