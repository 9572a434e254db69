"""Parameters stepped by zc beside others that torch steps, for tests of compiled steps.

pair = Pair(torch.optim.AdamW, "step")   # or another of WAYS
pair.step()
assert pair.difference() == 0.0
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from update.optimizers import Make

import zc

PASSES = [{"shard_params": {"zero_stage": 0}}, "shard_update", "clean_graph"]
OPTIONS: dict[str, Any] = {"passes": PASSES, "executor": "interpret"}


def step_of(optimizer: torch.optim.Optimizer) -> Any:
    """A function that steps ``optimizer`` from the gradients there are, by ``zc.step``."""
    torch._dynamo.reset()
    return torch.compile(lambda: zc.step(optimizer), backend="zero", options=OPTIONS)


WAYS: dict[str, Callable[[Any], Any]] = {
    "step": step_of,
    "compile": lambda o: torch.compile(o.step, backend="zero", options=OPTIONS),
    "compile_step": lambda o: zc.compile_step(o, OPTIONS),
}
COMPILED = ["compile", "compile_step"]  # ways to compile the optimizer's step by itself


class Pair:
    """Parameters stepped by zc beside others stepped by torch, with equal gradients."""

    def __init__(self, make: Make, way: str = "compile") -> None:
        torch.manual_seed(0)
        self.ours = [nn.Parameter(torch.randn(5, 3)) for _ in range(2)]
        self.theirs = copy.deepcopy(self.ours)
        self.optimizers = (make(self.ours), make(self.theirs))
        self.update = WAYS[way](self.optimizers[0])

    def grads(self, *skipped: int) -> None:
        for index, (ours, theirs) in enumerate(zip(self.ours, self.theirs, strict=True)):
            grad = None if index in skipped else torch.randn(5, 3)
            ours.grad, theirs.grad = grad, None if grad is None else grad.clone()

    def step(self, *skipped: int) -> None:
        self.grads(*skipped)
        self.update()
        self.optimizers[1].step()

    def difference(self) -> float:
        pairs = zip(self.ours, self.theirs, strict=True)
        return max((p - q).abs().max().item() for p, q in pairs)
