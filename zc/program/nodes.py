"""What capture writes on nodes: the type of each, and what each placeholder is bound to."""

import operator
from functools import cache
from typing import Any

import torch
from torch import fx

from zc.program.tables import Input

_INPUT = "zc_input"


def input_of(node: fx.Node) -> Input:
    """What the placeholder ``node`` is bound to."""
    return node.meta[_INPUT]


def set_input(node: fx.Node, value: Input) -> None:
    """Say what the placeholder ``node`` is bound to."""
    node.meta[_INPUT] = value


def value_of(node: fx.Node) -> Any:
    """The type of ``node``: the fake tensor, tuple or number that its op returns."""
    return node.meta.get("val")


def tensors_of(node: fx.Node) -> list[torch.Tensor]:
    """The fake tensors in the type of ``node``."""
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return [value]
    items = value if isinstance(value, (tuple, list)) else ()
    return [item for item in items if isinstance(item, torch.Tensor)]


def is_view(node: fx.Node) -> bool:
    """Whether ``node`` returns a view of its operand, or an item of a result: nothing is moved."""
    if node.target is operator.getitem:
        return True
    return isinstance(node.target, torch._ops.OpOverload) and returns_view(node.target)


@cache
def returns_view(target: torch._ops.OpOverload) -> bool:
    """Whether ``target`` returns a view of an operand."""
    aliases = [r.alias_info for r in target._schema.returns]
    return any(a is not None and not a.is_write for a in aliases)
