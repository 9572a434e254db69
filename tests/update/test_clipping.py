"""``clip_grad_norm_`` and ``clip_grad_value_`` between backward and ``zc.step``, on two ranks."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from multiprocess import run_ranks
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

import zc

STEPS = 4
TOLERANCE = 1e-6  # absolute, of numbers near 1: norms are summed shard by shard
HOW: dict[str, Callable[[Any], Any]] = {
    "norm": lambda params: clip_grad_norm_(params, 0.1),
    "largest": lambda params: clip_grad_norm_(params, 0.02, norm_type=float("inf")),
    "value": lambda params: clip_grad_value_(params, 0.01),
    "norm, list by list": lambda params: clip_grad_norm_(params, 0.1, foreach=False),
}


def network() -> nn.Module:
    """Rows that two ranks share unevenly, and a parameter of one element."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1))


def train(model: nn.Module, clip: Any, batches: list[torch.Tensor], wrap: Any) -> list[Any]:
    """Losses and norms of some steps of ``model``."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    def step(x: torch.Tensor) -> Any:
        loss = model(x).square().mean()
        loss.backward()
        norm = clip(model.parameters())
        zc.step(optimizer)
        return loss.detach(), norm

    compiled = wrap(step)
    return [compiled(x)[1] for x in batches]


def whole(value: Any) -> Any:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def differences(rank: int, world: int) -> dict[tuple[str, int], float]:
    """The largest difference from one process with the whole batch, over norms and parameters."""
    found = {}
    draws = torch.Generator().manual_seed(1)
    batches = [torch.randn(8, 6, generator=draws) for _ in range(STEPS)]
    mine = [batch.chunk(world)[rank] for batch in batches]
    for how, clip in HOW.items():
        single = network()
        expected = train(single, clip, batches, lambda step: step)
        for stage in range(4):
            torch._dynamo.reset()
            model = copy.deepcopy(network())
            model = model if stage == 0 else zc.shard(model)
            options = {"passes": f"zero{stage}", "executor": "interpret"}

            def wrap(step: Any, options: Any = options) -> Any:
                return torch.compile(step, backend="zero", options=options)

            norms = train(model, clip, mine, wrap)
            pairs = list(zip(model.parameters(), single.parameters(), strict=True))
            worst = [(whole(p) - q).abs().max().item() for p, q in pairs]
            if expected[0] is not None:
                worst += [
                    abs(float(whole(a)) - float(b)) for a, b in zip(norms, expected, strict=True)
                ]
            found[how, stage] = max(worst)
    return found


def test_clipping_is_that_of_one_process():
    for found in run_ranks(differences, 2, timeout=240):
        assert len(found) == 4 * len(HOW)
        assert {case: d for case, d in found.items() if d > TOLERANCE} == {}
