"""Gradients of a whole step: with ``fuse_update`` no more live at once than the two largest."""

from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import torch
from e2e.models import demo_gpt
from memory_tracker import MemoryTracker

import zc
from zc.run.variants import Variants

TOKENS = (1, 3)  # activations have the size of no parameter
PIPELINE: list[Any] = [{"shard_params": {"zero_stage": 0}}, "shard_update"]


class GradientTracker(MemoryTracker):
    """Counts what has the size of some parameter and is not held already."""

    def __init__(self, model: torch.nn.Module, held: list[torch.Tensor]) -> None:
        self.sizes = {p.untyped_storage().nbytes() for p in model.parameters()}
        self.held = {tensor.untyped_storage()._cdata for tensor in held}
        super().__init__()

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.nbytes() in self.sizes and storage._cdata not in self.held:
            super()._count(tensor)


def measure(passes: list[Any]) -> tuple[int, list[int]]:
    """Largest bytes of live gradients in the third step, and the bytes of each parameter."""
    torch._dynamo.reset()
    model = demo_gpt()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    watching: list[GradientTracker] = []
    run = Variants.run

    def watched(self: Variants, args: list[Any]) -> list[Any]:
        with watching[0] if watching else nullcontext():
            return run(self, args)

    @torch.compile(backend="zero", options={"passes": passes, "executor": "interpret"})
    def step(tokens: torch.Tensor) -> torch.Tensor:
        loss = model(tokens, tokens)
        loss.backward()
        zc.step(optimizer)
        return loss.detach()

    tokens = torch.randint(0, 256, TOKENS)
    with patch.object(Variants, "run", watched):
        step(tokens)
        step(tokens)
        entries = [v for state in optimizer.state.values() for v in state.values()]
        held = [*model.parameters(), *model.buffers(), *entries]
        watching.append(GradientTracker(model, held))
        step(tokens)
    return watching[0].peak_bytes, sorted(p.nbytes for p in model.parameters())


def test_live_gradients() -> None:
    together, sizes = measure([*PIPELINE, "lower_update"])
    apart, _ = measure([*PIPELINE, "fuse_update", "lower_update"])
    assert together >= 0.9 * sum(sizes)
    assert apart <= sum(sizes[-2:])
