"""Effects: nodes whose place in the order matters, and which end a compute region.

A collective, a wait, a write, a higher-order op, a number that the loop computes.
"""

import operator
from typing import Any

import torch
from torch import fx

from zc.program.analysis import acts
from zc.program.collectives import is_collective, is_wait
from zc.program.loops import ACCUMULATOR
from zc.program.nodes import value_of
from zc.program.partition import OWN_BLOCK
from zc.program.rounding import ROUND_STOCHASTIC
from zc.program.types import has_unbacked
from zc.program.updates import is_number

_STAYS: dict[Any, bool] = {}  # by op


def is_effect(node: fx.Node) -> bool:
    """Whether ``node`` must stay where the passes put it."""
    stays = _STAYS.get(node.target)
    if stays is None:
        stays = _STAYS[node.target] = _stays(node)
    value = value_of(node)
    if stays or (not isinstance(value, torch.Tensor) and is_count(node)):
        return True
    for source in node.all_input_nodes:
        if is_number(value_of(source)):
            return True
    if node.target is operator.getitem:
        source = node.args[0]
        return isinstance(source, fx.Node) and is_effect(source)
    return isinstance(node.target, torch._ops.OpOverload) and has_unbacked(value)


def _stays(node: fx.Node) -> bool:
    """Whether all calls of the op of ``node`` are effects, whatever their arguments."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return isinstance(node.target, torch._ops.HigherOrderOperator)
    listed = node.target in (OWN_BLOCK, ACCUMULATOR, ROUND_STOCHASTIC)
    return listed or is_collective(node) or is_wait(node) or acts(node)


def is_count(node: fx.Node) -> bool:
    """Whether the value of ``node`` is a number or a symbolic size."""
    value = value_of(node)
    return is_number(value) or isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool))
