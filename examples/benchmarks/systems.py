"""The same model and training step under DistributedDataParallel, FSDP2 and zc.

Each builder starts from the same seed and leaves the model as its documentation recommends: DDP
around the whole model and compiled from outside; FSDP2's ``fully_shard`` on every block and on the
model, each block compiled by itself; ``zc.shard`` and one ``torch.compile`` for the model (level 1)
or for the whole step with ``zc.step`` in it (level 2). The optimizer is AdamW as torch builds it by
default; *eager update* is level 2 with ``optimizer.step()`` behind the compiled function.
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
Optimizer = torch.optim.Optimizer
Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Recipe:
    """How a system is made: the model is prepared, then comes the optimizer, then the step.

    ``whole`` says that the step updates the parameters; otherwise it leaves gradients.
    """

    prepare: Callable[[nn.Module, str], nn.Module]
    compile: Callable[[nn.Module, Optimizer, str], Step]
    whole: bool = False


@dataclass
class System:
    """One way to train: ``step`` returns the loss and leaves gradients, unless it is ``whole``."""

    name: str
    model: nn.Module
    optimizer: Optimizer
    step: Step
    whole: bool

    def update(self) -> None:
        """Apply the gradients and let them go, where the step has not done so."""
        if not self.whole:
            self.optimizer.step()
            self.optimizer.zero_grad()


def build(name: str, config: Config, executor: str) -> System:
    """The system called ``name``; ``executor`` is ``inductor`` or ``interpret``.

    With ``interpret``, what the other systems compile runs node by node as well (``aot_eager``).
    """
    torch.manual_seed(SEED)
    recipe = SYSTEMS[name]
    model = recipe.prepare(GPT(config), executor)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, eps=EPSILON)
    return System(name, model, optimizer, recipe.compile(model, optimizer, executor), recipe.whole)


def _ddp(model: nn.Module, executor: str) -> nn.Module:
    return DistributedDataParallel(model, broadcast_buffers=False)


def _fsdp2(model: nn.Module, executor: str) -> nn.Module:
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for block in model.get_submodule("blocks").children():
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def _fsdp2_compiled(model: nn.Module, executor: str) -> nn.Module:
    for block in model.get_submodule("blocks").children():
        block.compile(backend=backend(executor))
    return _fsdp2(model, executor)


def _zc(model: nn.Module, executor: str) -> nn.Module:
    return zc.shard(model)


def _as_it_is(model: nn.Module, optimizer: Optimizer, executor: str) -> Step:
    return _around(model)


def _compiled(model: nn.Module, optimizer: Optimizer, executor: str) -> Step:
    return _around(torch.compile(model, backend=backend(executor)))


def _zc_outside(level: int, zero_stage: int) -> Callable[[nn.Module, Optimizer, str], Step]:
    """Forward and backward through zc; the optimizer steps eagerly behind them."""

    def compile_step(model: nn.Module, optimizer: Optimizer, executor: str) -> Step:
        return compile_zc(model, level, {"passes": f"zero{zero_stage}", "executor": executor})

    return compile_step


def _zc_whole(zero_stage: int) -> Callable[[nn.Module, Optimizer, str], Step]:
    """Forward, backward and update as one program."""

    def compile_step(model: nn.Module, optimizer: Optimizer, executor: str) -> Step:
        def step(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            loss = model(tokens, targets)
            loss.backward()
            zc.step(optimizer)
            return loss.detach()

        options: dict[str, Any] = {"passes": f"zero{zero_stage}", "executor": executor}
        return torch.compile(step, backend="zero", options=options)

    return compile_step


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


def backend(executor: str) -> str:
    """What compiles the other systems: node by node, or with Inductor."""
    return "inductor" if executor == "inductor" else "aot_eager"


SYSTEMS: dict[str, Recipe] = {
    BASELINE: Recipe(_ddp, _as_it_is),
    "DDP compiled": Recipe(_ddp, _compiled),
    "FSDP2 eager": Recipe(_fsdp2, _as_it_is),
    "FSDP2 compiled": Recipe(_fsdp2_compiled, _as_it_is),
    **{f"zc level 1, zero{z}": Recipe(_zc, _zc_outside(1, z)) for z in (1, 2, 3)},
    **{f"zc level 2, zero{z}": Recipe(_zc, _zc_whole(z), whole=True) for z in (1, 2, 3)},
    "zc level 2, zero3, eager update": Recipe(_zc, _zc_outside(2, 3)),
}
