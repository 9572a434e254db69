"""Effects: nodes whose place in the order matters, and which end a compute region.

A collective, a wait, a write, a higher-order op, a number that the loop computes.
"""

import operator
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import fx

from zc.program.analysis import acts
from zc.program.collectives import is_collective, is_wait
from zc.program.loops import ACCUMULATOR
from zc.program.nodes import value_of
from zc.program.partition import OWN_BLOCK
from zc.program.program import Program
from zc.program.remembered import remembered
from zc.program.rounding import ROUND_STOCHASTIC
from zc.program.types import has_unbacked
from zc.program.updates import is_number

_STAYS: dict[int, tuple[Any, bool]] = {}  # by id of the op, with it: its hash takes longer


def is_effect(node: fx.Node) -> bool:
    """Whether ``node`` must stay where the passes put it."""
    if _is_by_itself(node) or any([is_number(value_of(s)) for s in node.all_input_nodes]):
        return True
    source = node.args[0] if node.target is operator.getitem else None
    return isinstance(source, fx.Node) and is_effect(source)


def effects_in(program: Program) -> AbstractSet[fx.Node]:
    """The effects of the graph of ``program``; found once for the same nodes in any order."""
    return remembered(program, "effects", lambda: effects_of(program.graph), in_order=False)


def effects_of(graph: fx.Graph) -> set[fx.Node]:
    """The computed nodes of ``graph`` for which ``is_effect`` holds, found in one walk."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) and is_number(value):
            found.update(user for user in node.users if user.op == "call_function")
        if node.op != "call_function" or node in found:
            continue
        if _is_by_itself(node) or (node.target is operator.getitem and is_effect(node)):
            found.add(node)
    return found


def _is_by_itself(node: fx.Node) -> bool:
    """Whether ``node`` is an effect whatever it reads."""
    target, value = node.target, node.meta.get("val")
    known = _STAYS.get(id(target))
    if known is None:
        known = _STAYS[id(target)] = target, _stays(node)
    if known[1] or (not isinstance(value, torch.Tensor) and is_count(node)):
        return True
    return isinstance(target, torch._ops.OpOverload) and has_unbacked(value)


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
