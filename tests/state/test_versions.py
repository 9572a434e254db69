"""Values gathered within ``zc.full``, after the parameter has changed in one way or another."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import zc

CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "loop": lambda m: torch.optim.SGD(m.parameters(), foreach=False).step(),
    "foreach": lambda m: torch.optim.SGD(m.parameters(), foreach=True).step(),
    "fused": lambda m: torch.optim.AdamW(m.parameters(), fused=True).step(),
    "zc": lambda m: zc.compile_step(torch.optim.SGD(m.parameters()), {"executor": "interpret"})(),
    "in place": lambda m: m._parameters["weight"].mul_(0.5),  # type: ignore[union-attr]
    "load": lambda m: m.load_state_dict({"weight": m.state_dict()["weight"] * 0.5}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_full_sees_every_change(change: str):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = zc.shard(nn.Linear(16, 16, bias=False))
        param: Any = model._parameters["weight"]
        param.grad = torch.ones_like(param)
        with torch.no_grad(), zc.full(model):
            before: Any = model.weight
            assert model.weight is before
            CHANGES[change](model)
            found: Any = model.weight
            assert torch.equal(found, param.full_tensor())
            assert not torch.equal(found, before)
    finally:
        dist.destroy_process_group()
