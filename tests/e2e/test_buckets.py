"""Training with ``bucket_collectives`` beside training without: bits, bytes, calls, memory."""

import warnings
from typing import Any

import pytest
import torch
from e2e.bucket_runs import Passes, Run, train
from e2e.test_memory import TOLERANCE, Watch
from memory_tracker import MemoryTracker
from multiprocess import run_ranks
from torch import nn

import zc
from zc.program.liveness import peak_bytes

WAYS = {
    "level 1": (0, 3),
    "level 2": (1, 2, 3),
    "fused": (2,),
    "micro-batches": (1, 3),
    "no_sync": (0, 1),
}
OTHERS = {"level 1": (1, 2), "level 2": (0,), "micro-batches": (2,), "no_sync": (3,)}
Case = tuple[str, int]
CASES: list[Case] = [(way, stage) for way, stages in WAYS.items() for stage in stages]
REST: list[Case] = [(way, stage) for way, stages in OTHERS.items() for stage in stages]
SMALL: Case = ("level 1", 3)  # in buckets of several sizes
LIMIT = "300B"  # two parameters of the model in a bucket
NO_BUCKETS: Passes = []
ONE_BUCKET: Passes = ["bucket_collectives"]
SMALL_BUCKETS: Passes = [{"bucket_collectives": {"gather_bytes": LIMIT, "reduce_bytes": LIMIT}}]
FEW = {0: 1, 1: 3, 2: 3, 3: 4}  # collectives by stage: of each op and phase, one


def train_all(rank: int, world: int, cases: list[Case]) -> dict[Case, list[Run]]:
    warnings.simplefilter("ignore")
    kinds = (NO_BUCKETS, ONE_BUCKET)
    found = {case: [train(*case, buckets, rank) for buckets in kinds] for case in cases}
    if SMALL in cases:
        found[SMALL].append(train(*SMALL, SMALL_BUCKETS, rank))
    return found


@pytest.fixture(scope="module")
def results() -> list[dict[Case, list[Run]]]:
    return run_ranks(train_all, 2, CASES, timeout=400)


@pytest.mark.timeout(500)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bits_and_bytes_are_the_same(results: list[Any], case: Case):
    for found in results:
        assert_same(*found[case])


def assert_same(plain: Run, *others: Run) -> None:
    for run in others:
        assert run.losses == plain.losses
        assert run.sent == plain.sent
        assert run.state.keys() == plain.state.keys()
        assert all(torch.equal(v, plain.state[k]) for k, v in run.state.items())


@pytest.mark.timeout(500)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_buckets_are_few(results: list[Any], case: Case):
    for found in results:
        assert_few(case[1], *(run.collectives for run in found[case]))


def assert_few(stage: int, plain: int, one: int, *small: int) -> None:
    assert one == FEW[stage]
    assert plain >= 2 * one
    assert all(one < count < plain for count in small)


@pytest.mark.matrix
@pytest.mark.timeout(500)
def test_the_rest_of_the_table():
    for found in run_ranks(train_all, 2, REST, timeout=400):
        for case, runs in found.items():
            assert_same(*runs)
            assert_few(case[1], *(run.collectives for run in runs))


def measure(stage: int, level: int, buckets: Passes) -> tuple[int, int]:
    """Peak live bytes of one step: measured, and predicted."""
    torch._dynamo.reset()
    watch = Watch()
    with watch.installed():
        torch.manual_seed(0)
        model: Any = nn.Sequential(*(nn.Linear(64, 64, bias=i % 2 == 0) for i in range(6)))
        if stage:
            zc.shard(model)
        passes = [{"shard_params": {"zero_stage": stage}}, *buckets]
        options = {"passes": passes, "executor": "interpret"}
        compiled: Any = torch.compile(model, backend="zero", options=options)
        if level == 2:

            @torch.compile(backend="zero", options=options)
            def compiled(x: torch.Tensor) -> torch.Tensor:
                loss = model(x).square().mean()
                loss.backward()
                return loss.detach()

        x, peaks = torch.randn(8, 64), []
        for number in range(3):
            model.zero_grad()
            held = [getattr(p, "_local_tensor", p) for p in model.parameters()]
            watch.tracker = MemoryTracker([*held, x]) if number else None
            loss = compiled(x)
            if level == 1:
                loss.square().mean().backward()
            peaks += [watch.tracker.peak_bytes] if watch.tracker else []
    (program,) = watch.programs
    return min(peaks), peak_bytes(program.graph)


def measure_all(rank: int, world: int) -> dict[Any, tuple[int, int]]:
    warnings.simplefilter("ignore")
    half: Passes = [{"bucket_collectives": {"gather_bytes": "40KB", "reduce_bytes": "40KB"}}]
    return {
        (stage, level, kind): measure(stage, level, buckets)
        for stage, level in ((0, 2), (2, 2), (3, 2), (3, 1))
        for kind, buckets in (("one", ONE_BUCKET), ("half", half))
    }


@pytest.mark.timeout(300)
def test_the_measured_peak_is_the_predicted_one():
    for found in run_ranks(measure_all, 2, timeout=200):
        for case, (measured, predicted) in found.items():
            assert abs(measured - predicted) <= TOLERANCE * predicted, (case, measured, predicted)
