"""A model, batches and steps for tests of ``zc.microbatches``."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

ROUNDING = 1e-6  # absolute, of numbers near 1: means of means are added in another order
NORMED = 1e-5  # absolute: a batch norm of two rows multiplies rounding by up to 1/sqrt(variance)
HALF = 2e-2  # relative: bf16 has 8 bits, and sums of 2 rows and of 8 round differently
EXECUTORS = ["eager", "interpret", "inductor"]
Step = Callable[..., Any]


class Net(nn.Module):
    def __init__(self, *, norm: bool = False) -> None:
        super().__init__()
        self.up = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8) if norm else nn.Identity()
        self.down = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.norm(self.up(x))))


def batch(number: int, rows: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(rows, 4, generator=generator), torch.arange(rows) % 3


def backward_of(model: nn.Module) -> Step:
    def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss.detach()

    return loss_of


def run_by(executor: str, step: Step) -> Step:
    if executor == "eager":
        return step
    return torch.compile(step, backend="zero", options={"executor": executor})


def values_of(model: nn.Module) -> list[torch.Tensor]:
    return [value.detach().clone() for value in model.state_dict().values()]


def assert_close(found: Any, wanted: Any, atol: float = ROUNDING) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)
