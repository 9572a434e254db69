"""What a ``GradScaler`` asks of the gradients of a step, found out while the step is captured.

As in eager torch, which says "No inf checks were recorded for this optimizer." and "Attempting to
unscale FP16 gradients."; and all gradients of one step lie on one device.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from zc.errors import CaptureError
from zc.program.nodes import value_of
from zc.program.program import Program
from zc.state.optimizers import optimizer_of
from zc.state.scaling import INVERSE_SCALE


def check_scaled(program: Program, handle: int, grads: Mapping[str, fx.Node]) -> None:
    """Check one step that a scaler is asked for.

    Args:
        program: whose step it is.
        handle: of the optimizer.
        grads: gradients, by name of the parameter.

    Raises:
        CaptureError: where there is no gradient, one in fp16, or gradients on several devices.
    """
    if not grads:
        kind = type(optimizer_of(handle)).__name__
        raise CaptureError(
            f"{program.name} steps {kind} with a GradScaler where no parameter of {kind} has a "
            f"gradient, so there is nothing to look for infinities in; call backward() before, or "
            "zc.step without the scaler"
        )
    values = {name: value_of(node) for name, node in grads.items()}
    for name, value in values.items():
        _refuse_half(program, f"the gradient of '{name}'", value)
    first = next(iter(values))
    for name, value in values.items():
        if value.device != values[first].device:
            raise CaptureError(
                f"{program.name} steps with one GradScaler '{first}' on {values[first].device} and "
                f"'{name}' on {value.device}; build an optimizer and a GradScaler for each device"
            )


def check_unscaled(program: Program) -> None:
    """Check what ``zc.unscale_`` divides.

    Raises:
        CaptureError: for a gradient in fp16.
    """
    for node in program.graph.find_nodes(op="call_function", target=INVERSE_SCALE):
        for user in node.users:
            grad: Any = user.args[0]
            _refuse_half(
                program, f"a gradient of shape {list(value_of(grad).shape)}", value_of(grad)
            )


def _refuse_half(program: Program, what: str, value: torch.Tensor) -> None:
    if value.dtype == torch.float16:
        raise CaptureError(
            f"{program.name} unscales {what}, which is fp16 and cannot hold what comes out; keep "
            f"parameters in fp32 and compute in fp16 under torch.autocast"
        )
