"""Steps in micro-batches on two ranks beside plain PyTorch on the batches of both at once."""

import json
import math
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from e2e.microbatch_runs import (
    COUNT,
    RATE,
    REST,
    SHORT,
    WORLD,
    Case,
    Run,
    Totals,
    batch_norm,
    counts_that_differ,
    eager_run,
    of_model,
    run_case,
    train,
    whole_step,
)
from e2e.models import CASES
from multiprocess import fake_world, run_ranks

import zc
from zc.errors import PlanError
from zc.state.spec import spec_of

LOSS = 1e-5  # relative: rows are summed in another order, and every step builds on the one before
NORM = 1e-4  # relative: of gradients, which are differences of such sums
ITEM = 4  # bytes of fp32
EMBEDDING = 64 * 32 * ITEM * (WORLD - 1) // WORLD  # which llama's backward does not read


def train_all(rank: int, world: int, folder: str, cases: list[Case]) -> dict[Case, Run]:
    warnings.simplefilter("ignore")
    return {case: run_case(case, rank, folder) for case in cases}


def everything(rank: int, world: int, folder: str) -> dict[str, Any]:
    return {
        "runs": train_all(rank, world, folder, SHORT),
        "eager": eager_run(rank),
        "batch norm": batch_norm(rank),
        "counts": counts_that_differ(rank),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("microbatches")


@pytest.fixture(scope="module")
def results(folder: Path) -> list[dict[str, Any]]:
    return run_ranks(everything, WORLD, str(folder), timeout=500)


@pytest.fixture(scope="module")
def references() -> dict[str, Run]:
    """Plain PyTorch in this process, on the batches of both ranks together."""
    found = {}
    for name in ("gpt", "llama"):
        model, optimizer = of_model(name, 0)
        found[name] = train(name, model, whole_step(name, model, optimizer), list(range(WORLD)))
    return found


def assert_alike(runs: list[Run], reference: Run) -> None:
    for number, wanted in enumerate(reference.losses):
        loss = sum(run.losses[number] for run in runs) / len(runs)
        assert math.isclose(loss, wanted, rel_tol=LOSS), (number, loss, wanted)
    for run in runs:
        for norm, wanted in zip(run.norms, reference.norms, strict=True):
            assert math.isclose(norm, wanted, rel_tol=NORM)
    for name, value in runs[0].state.items():
        wanted = reference.state[name]
        allowed = 1e-5 * wanted.norm() + 1e-2 * RATE * math.sqrt(wanted.numel())
        assert (value - wanted).norm() <= allowed, name


@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", SHORT, ids=str)
def test_losses_and_parameters_are_those_of_the_whole_batch(
    results: list[dict[str, Any]], references: dict[str, Run], case: Case
):
    assert_alike([found["runs"][case] for found in results], references[case.model])


@pytest.mark.timeout(600)
def test_a_sharded_model_in_eager_mode(results: list[dict[str, Any]], references: dict[str, Run]):
    assert_alike([found["eager"] for found in results], references["gpt"])


def assert_bytes(runs: list[Run], folder: Path, case: Case) -> None:
    """Sent is what the report says, and that is what the formula says."""
    (path,) = folder.glob(f"{case.model}-{case.stage}-{case.executor}/*/report.json")
    wire: Totals = defaultdict(int)
    for row in json.loads(path.read_text())["passes"][-1]["collectives"]:
        wire[row["op"]] += row["wire_bytes"]
    assert all(run.sent == wire for run in runs)
    if case.stage == 0:
        full = sum(p.numel() for p in CASES[case.model].model().parameters()) * ITEM
        assert wire == {"all_reduce": 2 * full * (WORLD - 1) // WORLD}
        return
    sharded, vectors = sharded_bytes(case.model)
    share = sharded * (WORLD - 1) // WORLD
    gathers, reductions = {1: (1, 1), 2: (1, COUNT), 3: (2 * COUNT, COUNT)}[case.stage]
    unread = EMBEDDING if case.model == "llama" else 0
    kept = COUNT * (unread + vectors * (WORLD - 1) // WORLD) if case.stage == 3 else 0
    assert wire["reduce_scatter"] == reductions * share
    assert wire["all_gather"] == gathers * share - kept


def sharded_bytes(name: str) -> tuple[int, int]:
    """Bytes of all sharded parameters, padding included, and of those that are vectors."""
    with fake_world(WORLD):
        params = list(zc.shard(CASES[name].model()).parameters())
    found = [(p.ndim, spec.layout) for p in params if (spec := spec_of(p)) is not None]
    sizes = [(n, x.storage_numel * WORLD * ITEM) for n, x in found if not x.replicated]
    return sum(size for _, size in sizes), sum(size for n, size in sizes if n == 1)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", SHORT, ids=str)
def test_bytes(results: list[dict[str, Any]], folder: Path, case: Case):
    assert_bytes([found["runs"][case] for found in results], folder, case)


@pytest.mark.matrix
@pytest.mark.timeout(600)
def test_the_rest_of_the_table(folder: Path, references: dict[str, Run]):
    results = run_ranks(train_all, WORLD, str(folder), REST, timeout=500)
    for case in REST:
        runs = [found[case] for found in results]
        assert_alike(runs, references[case.model])
        assert_bytes(runs, folder, case)


@pytest.mark.timeout(600)
def test_gradients_of_earlier_steps_and_buffers(results: list[dict[str, Any]]):
    for found in results:
        compiled, eager = found["batch norm"]
        for ours, theirs in zip(compiled, eager, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=NORM, atol=NORM)


@pytest.mark.timeout(600)
def test_ranks_that_split_differently_are_refused(results: list[dict[str, Any]]):
    for found in results:
        kind, _, text = found["counts"].partition(": ")
        assert kind == PlanError.__name__
        assert "ranks compiled different programs; collective" in text
        assert " 2 times on rank 0 and " in text or " 4 times on rank 1 and " in text
