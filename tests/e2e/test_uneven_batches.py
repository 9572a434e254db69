"""Ranks with other batches or on other nodes start the same collectives; a recompile does too."""

from typing import Any

import pytest
import torch
from multiprocess import run_ranks
from torch import nn

import zc

TOLERANCE = 1e-6  # lower_update's kernels round differently
PLAIN = [{"shard_params": {"zero_stage": 3}}, "shard_update"]
PREFETCHED = [
    *PLAIN,
    {"bucket_collectives": {"gather_bytes": "300KB", "reduce_bytes": "100KB"}},
    "prefetch_gathers",
]
ROWS = {  # of the batches, by step and rank; and whether sizes are symbols
    "from the beginning": ([(16, 1024), (16, 1024)], False),
    "later, on one rank": ([(16, 16), (16, 1024)], False),
    "later, as symbols": ([(16, 16), (1024, 64)], None),
}


def model_of() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [(nn.Linear(256, 256), nn.LayerNorm(256), nn.GELU()) for _ in range(4)]
    return nn.Sequential(*(module for layer in layers for module in layer))


def train(passes: Any, rows: list[tuple[int, int]], rank: int, dynamic: bool | None) -> Any:
    """Losses and parameters."""
    torch._dynamo.reset()
    model = zc.shard(model_of())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    @torch.compile(
        backend="zero", dynamic=dynamic, options={"passes": passes, "executor": "interpret"}
    )
    def step(x: torch.Tensor) -> torch.Tensor:
        loss = model(x).square().mean()
        loss.backward()
        zc.step(optimizer)
        return loss.detach()

    generator = torch.Generator().manual_seed(rank)
    losses = [step(torch.randn(pair[rank], 256, generator=generator)).item() for pair in rows]
    return losses, {k: v.clone() for k, v in zc.full_state_dict(model).items()}


def runs(rank: int, world: int) -> dict[Any, Any]:
    found = {
        name: [train(passes, rows, rank, dynamic) for passes in (PLAIN, "zero3")]
        for name, (rows, dynamic) in ROWS.items()
    }
    with pytest.MonkeyPatch.context() as patch:  # rank 0 reckons with a network, rank 1 with none
        patch.setenv("LOCAL_WORLD_SIZE", str(1 + rank))
        rows = [(1024, 1024), (1024, 1024)]
        found["nodes"] = [train(passes, rows, rank, False) for passes in (PLAIN, PREFETCHED)]
    return found


@pytest.mark.timeout(300)
def test_losses_and_parameters_are_those_without_them() -> None:
    for found in run_ranks(runs, 2, timeout=240, weighing=True):
        for name, ((losses, params), (other, others)) in found.items():
            assert losses == pytest.approx(other, rel=TOLERANCE), name
            for key, value in params.items():
                torch.testing.assert_close(value, others[key], rtol=0, atol=TOLERANCE)
