"""What every system in the comparison is made of: the same model, seed and optimizer.

A system is a way to train: one call takes a step, update included. Each family of systems has a
module (``systems_torch.py``, ``systems_zc.py``, ...) with a dictionary ``SYSTEMS`` of builders;
``catalogue.py`` puts the families together.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from gpt import GPT, Config

__all__ = ["GPT", "SEED", "Builder", "Config", "Step", "Trained", "adamw", "backend"]

SEED = 0
SETTINGS: dict[str, Any] = {
    "lr": 3e-4,
    "eps": 1e-5,  # AdamW's own 1e-8 turns rounding of tiny gradients into whole updates
}
Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Trained:
    """A model and what trains it: ``step`` takes a batch, updates the model, returns the loss."""

    model: nn.Module
    step: Step


Builder = Callable[[GPT, str], Trained]  # a new model, and ``inductor`` or ``interpret``


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of the peers: torch's own fused kernel, which also takes DTensors."""
    return torch.optim.AdamW(model.parameters(), **SETTINGS, fused=True)


def stepping(forward_and_backward: Step, optimizer: torch.optim.Optimizer) -> Step:
    """A step of three parts, of which the second and third are the optimizer's."""

    def step(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = forward_and_backward(tokens, targets)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def around(model: Callable[..., torch.Tensor]) -> Step:
    """Forward and backward; the loss comes back detached."""

    def forward_and_backward(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = model(tokens, targets)
        loss.backward()
        return loss.detach()

    return forward_and_backward


def backend(executor: str) -> str:
    """What compiles the other systems: node by node, or with Inductor."""
    return "inductor" if executor == "inductor" else "aot_eager"


def data_parallel_mesh() -> DeviceMesh:
    """All ranks in a row."""
    return init_device_mesh("cpu", (torch.distributed.get_world_size(),))
