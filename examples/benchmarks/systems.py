"""The same model and training step under DistributedDataParallel, FSDP2 and zc.

Each builder starts from the same seed and leaves the model as its documentation recommends: DDP
around the whole model and compiled from outside; FSDP2's ``fully_shard`` on every block and on the
model, each block compiled by itself; ``zc.shard`` and one ``torch.compile`` for the model (level 1)
or for forward and backward together (level 2). The optimizer is the same and stays outside.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import zc

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from gpt import GPT, Config

SEED = 0
RATE = 3e-4
EPSILON = 1e-5  # AdamW's own 1e-8 turns rounding of tiny gradients into whole updates
BASELINE = "DDP eager"
Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class System:
    """One way to train: ``forward_and_backward`` returns the loss and leaves gradients."""

    name: str
    model: nn.Module
    forward_and_backward: Step
    optimizer: torch.optim.Optimizer

    def update(self) -> None:
        """Apply the gradients and let them go."""
        self.optimizer.step()
        self.optimizer.zero_grad()


def build(name: str, config: Config, executor: str) -> System:
    """The system called ``name``; ``executor`` is ``inductor`` or ``interpret``.

    With ``interpret``, what the other systems compile runs node by node as well (``aot_eager``).
    """
    torch.manual_seed(SEED)
    model: nn.Module = GPT(config)
    model, step = SYSTEMS[name](model, executor)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, eps=EPSILON)
    return System(name, model, step, optimizer)


def _ddp(model: nn.Module, executor: str) -> tuple[nn.Module, Step]:
    wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    return wrapped, _around(wrapped)


def _ddp_compiled(model: nn.Module, executor: str) -> tuple[nn.Module, Step]:
    wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    return wrapped, _around(torch.compile(wrapped, backend=backend(executor)))


def _fsdp2(model: nn.Module, executor: str) -> tuple[nn.Module, Step]:
    _shard_blocks(model)
    return model, _around(model)


def _fsdp2_compiled(model: nn.Module, executor: str) -> tuple[nn.Module, Step]:
    for block in model.get_submodule("blocks").children():
        block.compile(backend=backend(executor))
    _shard_blocks(model)
    return model, _around(model)


def _zc(level: int, zero_stage: int) -> Callable[[nn.Module, str], tuple[nn.Module, Step]]:
    def build_zc(model: nn.Module, executor: str) -> tuple[nn.Module, Step]:
        zc.shard(model)
        options: dict[str, Any] = {"passes": f"zero{zero_stage}", "executor": executor}
        return model, compile_zc(model, level, options)

    return build_zc


def compile_zc(model: nn.Module, level: int, options: dict[str, Any]) -> Step:
    """Forward and backward of ``model`` through the ``zero`` backend."""
    if level == 1:
        return _around(torch.compile(model, backend="zero", options=options))
    return torch.compile(_around(model), backend="zero", options=options)


def _around(model: Callable[..., torch.Tensor]) -> Step:
    def forward_and_backward(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = model(tokens, targets)
        loss.backward()
        return loss.detach()

    return forward_and_backward


def _shard_blocks(model: nn.Module) -> None:
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for block in model.get_submodule("blocks").children():
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def backend(executor: str) -> str:
    """What compiles the other systems: node by node, or with Inductor."""
    return "inductor" if executor == "inductor" else "aot_eager"


SYSTEMS: dict[str, Callable[[nn.Module, str], tuple[nn.Module, Step]]] = {
    BASELINE: _ddp,
    "DDP compiled": _ddp_compiled,
    "FSDP2 eager": _fsdp2,
    "FSDP2 compiled": _fsdp2_compiled,
    **{f"zc level {level}, zero{z}": _zc(level, z) for level in (1, 2) for z in (1, 2, 3)},
}
