"""``zc.step(optimizer)``: the update at the end of a training step, and its marker in programs.

    zc::update(params, grads, handle, scaler)

In a compiled function the marker stands for the optimizer's step; ``handle`` tells which optimizer,
``scaler`` which ``GradScaler`` is asked first, -1 for none.
Capture traces the optimizer and ``shard_update`` puts its arithmetic in the marker's place. Other
backends run the marker as it is, which is the optimizer's own step.
"""

import functools
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.amp.grad_scaler import GradScaler
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from zc.errors import ShardError
from zc.state.optimizers import check_optimizer
from zc.state.reading import local_of
from zc.state.scaling import NO_SCALER, scaler_of
from zc.state.scaling import handle_of as scaling_handle

_library = torch.library.Library("zc", "FRAGMENT")
_library.define("update(Tensor[] params, Tensor[] grads, int handle, int scaler=-1) -> ()")
UPDATE: Any = torch.ops.zc.update.default
fx.node.has_side_effect(UPDATE)

_optimizers: dict[int, "weakref.ref[Optimizer]"] = {}


class _Held:
    """The parameters of each optimizer, as ``of_<handle>``.

    Dynamo bakes in what it reaches through an optimizer; of a dictionary it sees the keys that
    there were when it first looked.
    """


_held = _Held()


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
    handles = [_handle_in_program(optimizer), *([] if scaling == NO_SCALER else [scaling])]
    held = _with_gradients(optimizer)
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
    held = _with_gradients(optimizer)
    if scaling == NO_SCALER or not held:
        return
    handle = _handle_in_program(optimizer)
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


def _with_gradients(optimizer: Optimizer) -> list[Any]:
    """The parameters of ``optimizer`` that have gradients.

    Reading ``param_groups`` in a compiled function would compile it for each learning rate.
    """
    held = getattr(_held, f"of_{_handle_in_program(optimizer)}")
    return [param for param in held if param.grad is not None]


def optimizer_of(handle: int) -> Optimizer:
    """The optimizer that a marker's handle stands for.

    Raises:
        ShardError: when it is gone.
    """
    reference = _optimizers.get(handle)
    optimizer = reference() if reference is not None else None
    if optimizer is None:
        raise ShardError("the optimizer of a compiled step is gone; keep it while the step is used")
    return optimizer


@torch.compiler.assume_constant_result
def _handle_in_program(optimizer: Optimizer) -> int:
    """The handle of ``optimizer``; called once per compilation."""
    check_optimizer(optimizer)
    hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    if hooks:
        raise ShardError(
            f"{type(optimizer).__name__} has hooks around its step, which a compiled step cannot "
            f"call; remove them, or call zc.step outside the compiled function"
        )
    handle = handle_of(optimizer)
    setattr(_held, f"of_{handle}", held_by(optimizer))
    return handle


def handle_of(optimizer: Optimizer) -> int:
    """A number for ``optimizer``, the same each time."""
    known = [handle for handle, reference in _optimizers.items() if reference() is optimizer]
    if known:
        return known[0]
    handle = max(_optimizers, default=-1) + 1
    _optimizers[handle] = weakref.ref(optimizer, lambda _: _forget(handle))
    _watch_groups(optimizer, handle)
    return handle


def held_by(optimizer: Optimizer) -> list[torch.Tensor]:
    """All parameters of ``optimizer``, in order."""
    return [param for group in optimizer.param_groups for param in group["params"]]


def _watch_groups(optimizer: Optimizer, handle: int) -> None:
    """Compile anew when the optimizer gets a further parameter group."""
    add = type(optimizer).add_param_group
    mine = weakref.ref(optimizer)

    @functools.wraps(add)
    def add_param_group(group: dict[str, Any]) -> None:
        owner = mine()
        assert owner is not None
        add(owner, group)
        setattr(_held, f"of_{handle}", held_by(owner))

    optimizer.add_param_group = add_param_group  # type: ignore[method-assign]


def _forget(handle: int) -> None:
    del _optimizers[handle]
    vars(_held).pop(f"of_{handle}", None)


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
    every = [p for group in optimizer.param_groups for p in group["params"]]
    locals_ = {local_of(p).data_ptr(): p for p in every if p.numel()}
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
