"""Unsharded parameters whose gradients compiled programs average, and those that slip through.

Under data parallelism without ``zc.shard``, a gradient is averaged by the program that computes
it. Code that Dynamo leaves eager (behind a graph break) computes gradients that no program sees:
ranks would drift apart silently. The optimizer's step finds such parameters and refuses them.
"""

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from zc.errors import ShardError

_MARK = "_zc_averaged"  # an attribute: weak references would keep model.to from working


def mark_averaged(params: Iterable[torch.Tensor]) -> None:
    """Remember that a program averages the gradients of ``params``, and watch optimizers."""
    for param in params:
        setattr(param, _MARK, True)
    _watch()


def check_averaged(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer some of whose gradients come from programs and others do not.

    Raises:
        ShardError: naming the first parameter whose gradient no program has averaged.
    """
    held = [
        (group, place, param)
        for group, settings in enumerate(optimizer.param_groups)
        for place, param in enumerate(settings["params"])
        if param.grad is not None and not isinstance(param, DTensor)
    ]
    missed = [item for item in held if not _is_averaged(item[2])]
    if not missed or len(missed) == len(held):
        return
    group, place, param = missed[0]
    raise ShardError(
        f"parameter {place} of group {group} of {type(optimizer).__name__}, shape "
        f"{list(param.shape)}, got its gradient outside compiled code, where it is not averaged "
        f"over ranks; remove the graph break (TORCH_LOGS=graph_breaks shows it), or call "
        f"zc.shard(model), which averages in eager code too"
    )


def _is_averaged(param: torch.Tensor) -> bool:
    return getattr(param, _MARK, False)


@functools.cache
def _watch() -> None:
    register_optimizer_step_pre_hook(_before_step)


def _before_step(optimizer: Any, args: Any, kwargs: Any) -> None:
    if not torch.compiler.is_compiling():
        check_averaged(optimizer)
