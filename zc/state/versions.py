"""Whether a sharded parameter has changed since it was gathered.

torch counts versions on the ``DTensor`` for in-place operations and on nothing for its fused and
foreach optimizers, zc's programs count on the shard.
"""

import functools
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_post_hook


class _Steps:
    """How often optimizers have stepped, in code that is not compiled."""

    count = 0


@torch.no_grad()
def version_of(param: torch.Tensor) -> tuple[int, ...]:
    """Equal as long as ``param`` has its value; call ``watch_steps`` once before."""
    local = param.to_local() if isinstance(param, DTensor) else param
    return (param._version, local._version, local.data_ptr(), _Steps.count)


@functools.cache
def watch_steps() -> None:
    """Count the steps of all optimizers of this process from now on."""
    register_optimizer_step_post_hook(_after_step)


def _after_step(optimizer: Any, args: Any, kwargs: Any) -> None:
    if not torch.compiler.is_compiling():
        _Steps.count += 1
