"""Optimizers that hold parameters which ``zc.shard`` replaced: they would train nothing."""

import functools
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from zc.errors import ShardError
from zc.state.spec import replaced_name


def check_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module | None = None) -> None:
    """Refuse an optimizer that was built before ``zc.shard`` or ``zc.materialize``.

    With ``model``, also refuse one that holds no parameter of it.

    Raises:
        ShardError: naming the first parameter concerned.
    """
    held = [param for group in optimizer.param_groups for param in group["params"]]
    for param in held:
        name = replaced_name(param)
        if name is not None:
            raise ShardError(
                f"{type(optimizer).__name__} holds '{name}' as it was before zc.shard and would "
                f"train nothing; build the optimizer after zc.shard and zc.materialize"
            )
    if model is not None and {id(p) for p in held}.isdisjoint(id(p) for p in model.parameters()):
        raise ShardError(
            f"{type(optimizer).__name__} holds no parameter of {type(model).__name__}; build it "
            f"from model.parameters() after zc.shard"
        )


@functools.cache
def watch_optimizers() -> None:
    """Check every optimizer of this process at each step from now on."""
    register_optimizer_step_pre_hook(_before_step)


def _before_step(optimizer: Any, args: Any, kwargs: Any) -> None:
    if not torch.compiler.is_compiling():
        check_optimizer(optimizer)
