"""What programs say they send is what the formulas say and what is sent; and what rests where."""

import json
import math
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from e2e.equality import Config, compiled_step
from e2e.models import CASES
from multiprocess import fake_world, run_ranks
from torch import nn

import zc
from zc.comm.wire import METER
from zc.program.layout import ALIGN_ELEMENTS
from zc.state.spec import spec_of

ITEM = 4  # bytes of fp32
LEVEL_OF = {"gpt": 2, "conv": 1}
CONFIGS = {
    2: [(name, stage) for name in LEVEL_OF for stage in range(4)],
    4: [("gpt", 3), ("conv", 0), ("conv", 2)],  # every formula; stage 1 is stage 2 here
}
Totals = dict[str, int]


def trainable(name: str) -> list[nn.Parameter]:
    """The distinct parameters of one of the models."""
    return list(CASES[name].model().parameters())


def sizes(name: str, world: int) -> tuple[int, int, int]:
    """Bytes of sharded parameters, padding included, of vectors of these, of replicated ones."""
    with fake_world(world):
        params = list(zc.shard(CASES[name].model()).parameters())
    found = [(p.ndim, spec.layout) for p in params if (spec := spec_of(p)) is not None]
    sharded = [(n, x.storage_numel * world * ITEM) for n, x in found if not x.replicated]
    vectors = sum(size for dimensions, size in sharded if dimensions == 1)
    whole = sum(x.storage_numel for _, x in found if x.replicated) * ITEM
    return sum(size for _, size in sharded), vectors, whole


def send(rank: int, world: int, folder: str) -> dict[Any, Totals]:
    """Bytes sent in the second step, by collective, for each model and stage."""
    warnings.simplefilter("ignore")
    found = {}
    for name, stage in CONFIGS[world]:
        torch._dynamo.reset()
        model = CASES[name].model()
        if stage:
            zc.shard(model)
        config = Config(name, world, stage, LEVEL_OF[name], "interpret", False)
        dump = str(Path(folder, f"{name}-{stage}"))
        step = compiled_step(CASES[name], model, config, dump=dump)
        for i in range(2):
            METER.reset()
            step(*CASES[name].batch(i, rank))
            model.zero_grad()
        found[name, stage] = dict(METER.sent)
    return found


def report_in(folder: Path) -> dict[str, Any]:
    (report,) = folder.glob("*/report.json")
    return json.loads(report.read_text())


def traffic(report: dict[str, Any]) -> tuple[dict[tuple[str, str], int], Totals]:
    """Payload by op and phase, and wire bytes by op, of the finished program of a report."""
    payload: dict[tuple[str, str], int] = defaultdict(int)
    wire: Totals = defaultdict(int)
    for row in report["passes"][-1]["collectives"]:
        payload[row["op"], row["phase"]] += row["payload_bytes"]
        wire[row["op"]] += row["wire_bytes"]
    return dict(payload), dict(wire)


def formula(
    stage: int, sharded: int, vectors: int, replicated: int, full: int
) -> dict[tuple[str, str], int]:
    """Payload of a step that reads every parameter in both phases (arXiv:1910.02054, section 7).

    Stage 3 keeps vectors gathered.
    """
    if stage == 0:
        return {("all_reduce", "backward"): full}
    once = {("all_gather", "forward"): sharded, ("reduce_scatter", "backward"): sharded}
    again = {("all_gather", "backward"): sharded - vectors} if stage == 3 else {}
    whole = {("all_reduce", "backward"): replicated} if replicated else {}
    return once | again | whole


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("world", CONFIGS)
def test_bytes_reported_are_those_of_the_formula_and_those_sent(world: int, tmp_path: Path) -> None:
    by_rank = run_ranks(send, world, str(tmp_path), timeout=900)
    for name, stage in CONFIGS[world]:
        report = report_in(tmp_path / f"{name}-{stage}")
        payload, wire = traffic(report)
        assert all(sent[name, stage] == wire for sent in by_rank), (name, stage)
        sharded, vectors, replicated = sizes(name, world)
        full = sum(p.numel() for p in trainable(name)) * ITEM
        expected = formula(stage, sharded, vectors, replicated, full)
        if name == "conv":  # biases and the first weight are not read in backward
            payload.pop(("all_gather", "backward"), None)
            expected.pop(("all_gather", "backward"), None)
        assert payload == expected, (name, stage)
        if name == "gpt" and stage > 0:
            share = sum(payload.values()) * (world - 1) // world
            assert wire["all_gather"] + wire["reduce_scatter"] == share, stage
        assert report["totals"]["replicated_bytes"] == (replicated if stage else full)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("world", [2, 4, 7])
def test_a_rank_holds_its_share_of_each_sharded_parameter(name: str, world: int) -> None:
    with fake_world(world, rank=world - 1):
        for param in zc.shard(CASES[name].model()).parameters():
            spec = spec_of(param)
            assert spec is not None
            if spec.layout.dim is None:
                continue
            size = param.shape[spec.layout.dim]
            share = math.ceil(size / world) * param.numel() // size
            held = param.to_local().untyped_storage().nbytes() // ITEM  # type: ignore[operator]
            assert held < share + ALIGN_ELEMENTS


@pytest.mark.parametrize("world", [2, 8, 64, 1024])
def test_replicated_parameters_are_at_most_one_percent_of_gpt2(world: int) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config())
    with fake_world(world):
        specs = [(p, spec_of(p)) for p in zc.shard(model).parameters()]
    replicated = sum(p.numel() for p, spec in specs if spec is not None and spec.layout.replicated)
    assert sum(p.numel() for p, _ in specs) > 124e6
    assert replicated <= 0.01 * 124e6
