"""``zc.step(optimizer)``: the update at the end of a training step, and its marker in programs.

    zc::update(params, grads, handle, scaler)

In a compiled function the marker stands for the optimizer's step; ``handle`` tells which optimizer,
``scaler`` which ``GradScaler`` is asked first, -1 for none.
Capture traces the optimizer and ``shard_update`` puts its arithmetic in the marker's place. Other
backends run the marker as it is, which is the optimizer's own step.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.amp.grad_scaler import GradScaler
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from zc.state.optimizers import (
    check_optimizer,
    handle_in_program,
    held_by,
    optimizer_of,
    with_gradients,
)
from zc.state.reading import local_of
from zc.state.scaling import NO_SCALER, scaler_of
from zc.state.scaling import handle_of as scaling_handle

_library = torch.library.Library("zc", "FRAGMENT")
_library.define("update(Tensor[] params, Tensor[] grads, int handle, int scaler=-1) -> ()")
UPDATE: Any = torch.ops.zc.update.default
fx.node.has_side_effect(UPDATE)


def step(optimizer: Optimizer, scaler: GradScaler | None = None) -> None:
    """Do ``optimizer.step(); optimizer.zero_grad()``.

    In a function compiled with ``backend="zero"`` this is part of the program.

    Args:
        optimizer: what to step.
        scaler: the ``GradScaler`` whose scale is in the gradients (``zc.scale``), for one optimizer
            alone: ``scaler.step(optimizer); scaler.update(); optimizer.zero_grad()``. The step is
            skipped, on every rank, where some gradient on some rank is not finite.

    Raises:
        ShardError: when ``optimizer`` was built before ``zc.shard`` and would train nothing, or
            has hooks around its step, which no program would call.
    """
    if not torch.compiler.is_compiling():
        _step_now(optimizer, scaler)
        return
    id(optimizer), id(scaler)  # so that others in their place are compiled for anew
    scaling = scaling_handle(scaler)
    handles = [handle_in_program(optimizer), *([] if scaling == NO_SCALER else [scaling])]
    held = with_gradients(optimizer)
    params = [local_of(param).detach() for param in held]
    grads = [local_of(param.grad) for param in held]
    torch.ops.zc.update(params, grads, *handles)
    for param in held:
        param.grad = None


def unscale_(optimizer: Optimizer, scaler: GradScaler) -> None:
    """Divide the gradients that ``optimizer`` holds by the scale: ``scaler.unscale_(optimizer)``.

    ``zc.step(optimizer, scaler)`` does so by itself where this has not been called.
    """
    if not torch.compiler.is_compiling():
        scaler.unscale_(optimizer)
        return
    id(optimizer), id(scaler)
    scaling = scaling_handle(scaler)
    held = with_gradients(optimizer)
    if scaling == NO_SCALER or not held:
        return
    handle = handle_in_program(optimizer)
    factor = torch.ops.zc.inverse_scale(local_of(held[0].grad), scaling, handle)
    for param in held:
        param.grad.mul_(factor)


def _step_now(optimizer: Optimizer, scaler: GradScaler | None) -> None:
    check_optimizer(optimizer)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    optimizer.zero_grad()


@torch.library.register_fake("zc::update")
def _update_type(
    params: Sequence[Any], grads: Sequence[Any], handle: int, scaler: int = -1
) -> None:
    return None


def _update_now(
    params: Sequence[Any], grads: Sequence[Any], handle: int, scaler: int = NO_SCALER
) -> None:
    """The optimizer's own step, for backends that know nothing of the marker."""
    optimizer = optimizer_of(handle)
    locals_ = {local_of(p).data_ptr(): p for p in held_by(optimizer) if p.numel()}
    given = [
        (locals_.get(local.data_ptr()), grad) for local, grad in zip(params, grads, strict=True)
    ]
    for param, grad in given:
        if param is not None:
            param.grad = _as(param, grad)
    if scaler == NO_SCALER:
        optimizer.step()
    else:
        scaler_of(scaler).step(optimizer)
        scaler_of(scaler).update()
    for param, _ in given:
        if param is not None:
            param.grad = None


def _as(param: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    if not isinstance(param, DTensor):
        return grad
    return DTensor.from_local(
        grad,
        param.device_mesh,
        param.placements,
        run_check=False,
        shape=param.shape,
        stride=param.stride(),
    )


_library.impl("update", torch.compiler.disable(_update_now), "CompositeExplicitAutograd")
