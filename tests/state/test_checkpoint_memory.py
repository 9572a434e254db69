"""No rank ever holds the full model twice, whether it collects or loads a checkpoint."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_tracker import MemoryTracker
from multiprocess import run_ranks
from torch import nn

from zc.state.checkpoint import full_state_dict, load_full_state_dict
from zc.state.materialize import materialize
from zc.state.shard import shard

WIDTH, LAYERS = 64, 8
LARGEST = WIDTH * WIDTH * 4  # bytes of one weight
FULL = LAYERS * (WIDTH * WIDTH + WIDTH) * 4  # bytes of the model


def model_on(device: str) -> nn.Module:
    with torch.device(device):
        return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))


def collect_and_load(rank: int, world: int, folder: str) -> dict[str, Any]:
    torch.manual_seed(0)
    model = shard(model_on("cpu"))
    held = [p.to_local() for p in model.parameters()]
    with MemoryTracker(held) as collecting:
        state = full_state_dict(model)
    path = Path(folder, "full.pt")
    if rank == 0:
        torch.save(state, path)
    torch.distributed.barrier()
    fresh = shard(model_on("meta"))
    with MemoryTracker() as loading:
        load_full_state_dict(materialize(fresh, torch.device("cpu")), path)
    same = full_state_dict(fresh)
    return {
        "collecting": collecting.peak_bytes,
        "loading": loading.peak_bytes,
        "same": all(torch.equal(same[k], state[k]) for k in state),
    }


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        return run_ranks(collect_and_load, 2, folder)


def test_collecting_holds_one_copy_and_one_parameter_more(results: list[dict[str, Any]]) -> None:
    shards = FULL // 2
    assert results[0]["collecting"] <= shards + FULL + 3 * LARGEST
    assert results[1]["collecting"] <= shards + 3 * LARGEST


def test_loading_allocates_shards_and_one_parameter_more(results: list[dict[str, Any]]) -> None:
    """The file itself is mapped, not read: its storage counts as one copy at the most."""
    assert all(r["loading"] <= FULL // 2 + FULL + 3 * LARGEST for r in results)


def test_what_was_collected_is_loaded(results: list[dict[str, Any]]) -> None:
    assert all(r["same"] for r in results)
