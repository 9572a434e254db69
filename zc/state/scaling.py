"""Dynamic loss scaling for fp16: ``torch.amp.GradScaler`` inside and outside compiled steps.

    zc.scale(loss, scaler).backward()
    zc.unscale_(optimizer, scaler)     # only where gradients are read or clipped before the step
    zc.step(optimizer, scaler)

    zc::scale(loss, scaler)                       the loss times the scale
    zc::inverse_scale(like, scaler, optimizer)    one over the scale, on the device of ``like``

In a compiled step both are markers, which ``shard_update`` makes arithmetic on late-bound state;
the ``scaler`` in a program is a handle. The scale stays where the ``GradScaler`` keeps it, so
``get_scale``, ``state_dict`` and ``load_state_dict`` work as usual. The algorithm is that of
Micikevicius et al., "Mixed Precision Training" (arXiv:1710.03740), section 3.2, with the dynamics
of ``GradScaler``.
"""

from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler

from zc.errors import ShardError
from zc.state.handles import Handles

NO_SCALER = -1
_library = torch.library.Library("zc", "FRAGMENT")
_library.define("scale(Tensor loss, int scaler) -> Tensor")
_library.define("inverse_scale(Tensor like, int scaler, int optimizer) -> Tensor")
SCALE: Any = torch.ops.zc.scale.default
INVERSE_SCALE: Any = torch.ops.zc.inverse_scale.default

_scalers = Handles[GradScaler](
    "the GradScaler of a compiled step is gone; keep it as long as the step"
)


def scale(loss: torch.Tensor, scaler: GradScaler) -> torch.Tensor:
    """``loss`` times the scale of ``scaler``: what ``scaler.scale(loss)`` gives.

    Args:
        loss: 0-d.
        scaler: one that is not enabled leaves the loss alone.
    """
    if not torch.compiler.is_compiling():
        return scaler.scale(loss)  # type: ignore[return-value]
    id(scaler)  # so that another scaler in its place is compiled for anew
    handle = handle_of(scaler)
    return loss if handle == NO_SCALER else torch.ops.zc.scale(loss, handle)


def scaler_of(handle: int) -> GradScaler:
    """The scaler that a handle stands for.

    Raises:
        ShardError: when it is gone.
    """
    return _scalers.get(handle)


@torch.compiler.assume_constant_result
def handle_of(scaler: GradScaler | None) -> int:
    """A number for ``scaler``, the same each time; -1 for one that does nothing."""
    if scaler is None or not scaler.is_enabled():
        return NO_SCALER
    return _scalers.of(scaler)[0]


def start(scaler: GradScaler, device: torch.device) -> None:
    """Make the scale and its count of steps, which a scaler does when it is first used."""
    if scaler._scale is None:
        scaler._lazy_init_scale_growth_tracker(device)


@torch.library.register_fake("zc::scale")
def _scale_type(loss: torch.Tensor, scaler: int) -> torch.Tensor:
    return loss.new_empty(loss.shape, dtype=torch.promote_types(loss.dtype, torch.float32))


@torch.library.register_fake("zc::inverse_scale")
def _inverse_type(like: torch.Tensor, scaler: int, optimizer: int) -> torch.Tensor:
    return like.new_empty((), dtype=torch.float32)


def _scale_now(loss: torch.Tensor, handle: int) -> torch.Tensor:
    scaler = scaler_of(handle)
    start(scaler, loss.device)
    assert scaler._scale is not None
    wide = torch.promote_types(loss.dtype, torch.float32)
    return loss.to(wide) * scaler._scale.to(loss.device)


def _inverse_now(like: torch.Tensor, scaler: int, optimizer: int) -> torch.Tensor:
    raise ShardError(
        "zc.unscale_ and zc.step(optimizer, scaler) stand apart; put both into one function "
        "compiled with backend='zero' in one piece, or call scaler.unscale_(optimizer) uncompiled"
    )


_library.impl("scale", _scale_now, "CompositeExplicitAutograd")
_library.impl("inverse_scale", _inverse_now, "CompositeExplicitAutograd")


def _remember(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.scaler, ctx.dtype = inputs[1], inputs[0].dtype


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
    return torch.ops.zc.scale(grad, ctx.scaler).to(ctx.dtype), None


torch.library.register_autograd("zc::scale", _backward, setup_context=_remember)
