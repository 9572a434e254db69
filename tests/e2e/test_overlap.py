"""Overlap on real process groups: the bits of a run without it, at both levels."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from multiprocess import run_ranks
from torch import nn

import zc

DEVICE = """\
name: slow_link
memory: 16GB
memory_bandwidth: 20GB/s
flops: {float32: 50GFLOP/s}
op: 10us
issue: 1us
node: {ranks: 8, latency: 200us, bandwidth: 1GB/s}
network: {latency: 500us, bandwidth: 1GB/s}
host: {latency: 1us, bandwidth: 10GB/s}
file: {latency: 100us, bandwidth: 1GB/s}
"""
BEFORE = ["shard_update", "clean_graph"]
OVERLAP = ["prefetch_gathers", "delay_reductions"]
WEIGHED = ["fuse_update", *OVERLAP]
KEEP = {"keep_gathered": {"memory": "20KB"}}
PASSES: dict[str, tuple[int, list[Any]]] = {
    "plain": (3, BEFORE),
    "kept": (3, [*BEFORE, KEEP, *OVERLAP]),
    "fused": (3, ["shard_update", "fuse_update", *OVERLAP]),
    "zero2": (2, [*BEFORE, *OVERLAP]),
}
LEVELS = {"plain": (1, 2), "kept": (1, 2), "fused": (2,), "zero2": (1, 2)}
RUNS = [(name, level) for name, levels in LEVELS.items() for level in levels]
STEPS = 2


def model_of() -> nn.Sequential:
    torch.manual_seed(0)
    sizes = [16, 64, 64, 64, 8]
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    return nn.Sequential(*(m for layer in layers for m in (layer, nn.Tanh())))


def train(name: str, level: int, rank: int, folder: str) -> Any:
    """Losses and parameters after a few steps; dumps go to ``folder``."""
    torch._dynamo.reset()
    zero_stage, passes = PASSES[name]
    device = Path(folder, f"device-{rank}.yaml")
    device.write_text(DEVICE)
    pipeline = {"name": "test", "executor": "interpret", "device": str(device),
                "passes": [{"shard_params": {"zero_stage": zero_stage}}, *passes]}  # fmt: skip
    options = {"passes": pipeline, "dump": str(Path(folder, f"{name}-{level}"))}
    model = zc.shard(model_of())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    called = torch.compile(model, backend="zero", options=options) if level == 1 else model

    def step(x: torch.Tensor) -> torch.Tensor:
        loss = called(x).square().mean()
        loss.backward()
        zc.step(optimizer)
        return loss.detach()

    run = torch.compile(step, backend="zero", options=options) if level == 2 else step
    generator = torch.Generator().manual_seed(rank)
    losses = [run(torch.randn(4, 16, generator=generator)).item() for _ in range(STEPS)]
    return losses, {k: v.clone() for k, v in zc.full_state_dict(model).items()}


def ranks(rank: int, world: int, folder: str) -> dict[Any, Any]:
    return {run: train(*run, rank, folder) for run in RUNS}


def notes_of(folder: Path) -> list[str]:
    found = []
    for path in sorted(folder.glob("*/report.json")):
        found += [note for p in json.loads(path.read_text())["passes"] for note in p["notes"]]
    return found


@pytest.mark.timeout(300)
def test_overlap_changes_no_bit(tmp_path: Path) -> None:
    for found in run_ranks(ranks, 2, str(tmp_path), timeout=240, weighing=True):
        for run in RUNS:
            (losses, params), (other, others) = found[run], found["plain", run[1]]
            assert losses == other, run
            assert all(torch.equal(v, others[k]) for k, v in params.items()), run
    for name, level in RUNS:
        said = notes_of(tmp_path / f"{name}-{level}")
        asked = [p for p in PASSES[name][1] if p in WEIGHED or p is KEEP]
        assert len(said) == len(asked), said
        assert not [note for note in said if "left alone" in note], said
