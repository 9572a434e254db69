"""The optimizer steps of a captured program: which parameters, which gradients, which optimizer.

before:  %detach = aten.detach(%view(%w)); zc.update([%detach], [%grad], 7)
after:   zc.update([%w], [%grad], 0)       the handle is now an index into ``program.updates``
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from zc.capture.markers_merge import ALIASES, EMPTY
from zc.capture.scaled import check_scaled, check_unscaled
from zc.errors import CaptureError
from zc.program.edit import erase_dead
from zc.program.nodes import input_of, value_of
from zc.program.program import Program
from zc.program.stamps import UPDATE, restamp
from zc.state.markers import GRAD, PARAM
from zc.state.scaling import NO_SCALER
from zc.state.step import UPDATE as MARKER

aten: Any = torch.ops.aten


@dataclass(frozen=True)
class Stepped:
    """One ``zc.step`` in a program: the optimizer's handle and, by parameter, its gradient.

    ``scaler`` is the handle of the ``GradScaler`` that is asked first.
    """

    handle: int
    grads: dict[str, fx.Node]
    scaler: int = NO_SCALER

    def dtypes(self) -> dict[str, torch.dtype]:
        """The dtype of each gradient."""
        return {name: value_of(node).dtype for name, node in self.grads.items()}


def settle_updates(program: Program) -> None:
    """Make the operands of every ``zc.update`` the parameters and their gradients themselves.

    Raises:
        CaptureError: for a parameter that is no input of the program.
    """
    for marker in program.graph.find_nodes(op="call_function", target=MARKER):
        params, grads, *handles = marker.args
        inputs = [_input(param) for param in params]  # type: ignore[union-attr]
        marker.args = (inputs, [_gradient(grad) for grad in grads], *handles)  # type: ignore
        restamp(marker, phase=UPDATE)
        erase_dead(program.graph, [*params, *grads])  # type: ignore[misc]


def adopt_updates(program: Program) -> list[Stepped]:
    """The optimizer steps of ``program``; each marker is numbered by its place among them.

    Raises:
        CaptureError: for a parameter that is stepped twice, and for what no ``GradScaler`` takes.
    """
    found: list[Stepped] = []
    for marker in program.graph.find_nodes(op="call_function", target=MARKER):
        params, grads, handle, *scaler = marker.args
        names = [input_of(node).subject for node in params]  # type: ignore
        stepped = Stepped(handle, dict(zip(names, grads, strict=True)), *scaler)  # type: ignore
        for name in names:
            if any(name in earlier.grads for earlier in found):
                raise CaptureError(
                    f"two optimizers of {program.name} step '{name}' in one program; give each "
                    f"parameter to one optimizer"
                )
        scaled = stepped.scaler != NO_SCALER
        if scaled and any(stepped.scaler == earlier.scaler for earlier in found):
            raise CaptureError(
                f"two optimizers of {program.name} are stepped with one GradScaler; give each a "
                f"GradScaler of its own"
            )
        if scaled:
            check_scaled(program, stepped.handle, stepped.grads)
        marker.args = (params, grads, len(found), *scaler)
        found.append(stepped)
    check_unscaled(program)
    return found


def _gradient(value: fx.Node) -> fx.Node:
    """The reduction that ``value`` is the result of, where nothing changed it since."""
    node: Any = value
    while node.op == "call_function" and node.target in (*ALIASES, aten.copy.default):
        fills = node.target is aten.copy.default
        if fills and node.args[0].target not in EMPTY:
            return value
        node = node.args[1] if fills else node.args[0]
    return node if node.target is GRAD else value


def _input(value: Any) -> fx.Node:
    node = value
    while node.op == "call_function" and node.target in (*ALIASES, PARAM):
        node = node.args[0]
    if node.op != "placeholder" or input_of(node).kind != "param":
        raise CaptureError(
            f"zc.step updates a tensor of shape {list(value_of(value).shape)} that is no parameter "
            f"of a module; build the optimizer from model.parameters()"
        )
    return node
