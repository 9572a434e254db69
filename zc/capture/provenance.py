"""Stamps of captured nodes: phase, module and source line, from what torch recorded."""

import operator
import re
from pathlib import Path
from typing import Any

import torch
from torch import fx

from zc import torch_private
from zc.program.analysis import reads_no_values
from zc.program.nodes import input_of, value_of
from zc.program.stamps import BACKWARD, FORWARD, Stamp, set_stamp, stamp_of

_NOT_THE_USERS = (torch.__file__.removesuffix("__init__.py"), str(Path(__file__).parents[1]))
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in')
_MODULE = re.compile(r"_modules\['([^']+)'\]|\.(\w+)")


def stamp_captured(graph: fx.Graph) -> None:
    """Stamp every node of a captured graph.

    Autograd's nodes are backward, and so is whatever reads one or a tangent (the backward of the
    user's own ``autograd.Function``), or serves only such nodes and was traced behind the first of
    them (buffers that gradients are copied into).
    """
    seen_backward = False
    for node in graph.nodes:
        phase = BACKWARD if _is_backward(node) else FORWARD
        seen_backward = seen_backward or phase == BACKWARD
        behind = seen_backward and phase == FORWARD
        set_stamp(node, Stamp(phase=phase, module=_module(node), source=_source(node)))
        node.meta["_zc_behind"] = behind
    for node in reversed(graph.nodes):
        behind = node.meta.pop("_zc_behind")
        if behind and node.op == "call_function" and _serves_backward(node):
            set_stamp(node, Stamp(BACKWARD, module=_module(node), source=_source(node)))


def _is_backward(node: fx.Node) -> bool:
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        return stamp_of(node.all_input_nodes[0]).phase == BACKWARD
    if torch_private.is_backward(node) and not _is_number(node):
        return True
    return any(_is_late(source) for source in node.all_input_nodes)


def _is_late(source: fx.Node) -> bool:
    if source.op == "placeholder":
        return input_of(source).kind == "tangent"
    return stamp_of(source).phase == BACKWARD


def _is_number(node: fx.Node) -> bool:
    """A size that backward asks of a forward value is computed in forward: saving it is cheap."""
    return isinstance(value_of(node), (torch.SymInt, torch.SymFloat, torch.SymBool))


def _serves_backward(node: fx.Node) -> bool:
    users = list(node.users)
    return (
        bool(users)
        and reads_no_values(node)
        and all(stamp_of(user).phase == BACKWARD for user in users)
    )


def _module(node: fx.Node) -> str:
    stack: dict[str, Any] | None = node.meta.get("nn_module_stack")
    stack = stack or node.meta.get("fwd_nn_module_stack")
    if not stack:
        return ""
    path = str(list(stack.values())[-1][0])
    steps = [a or b for a, b in _MODULE.findall(path)]
    return ".".join(steps)


def _source(node: fx.Node) -> str:
    """The innermost line of the user's code; of torch's or zc's where there is nothing else."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    users = [frame for frame in frames if not frame[0].startswith(_NOT_THE_USERS)] or frames
    return f"{users[-1][0]}:{users[-1][1]}" if users else ""
