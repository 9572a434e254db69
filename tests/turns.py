"""A training step of two turns: forward, backward, forward, backward."""

from typing import Any

import torch
from multiprocess import fake_world
from torch import nn

from zc.inspection import capture
from zc.program.program import Program
from zc.state.shard import shard


def two_turns(passes: list[Any]) -> Program:
    """The step of two linear layers, sharded over two ranks, after ``passes``."""
    with fake_world(2):
        model = shard(nn.Sequential(nn.Linear(8, 16, bias=False), nn.Linear(16, 8, bias=False)))

        def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            first = model(x).sum()
            first.backward()
            second = model(y).sum()
            second.backward()
            return first.detach() + second.detach()

        return capture(step, torch.ones(2, 8), torch.ones(2, 8), passes=passes)
