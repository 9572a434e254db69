"""The first step: what state starts as, and whether a step on that is the optimizer's first one.

Most optimizers make their state at the first step and then go on as ever: for them zc makes the
same state before the first step, and one body serves all steps. Where the first step differs (SGD's
momentum starts as the gradient), it gets a body of its own.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from zc.program.updates import Slot
from zc.update.trace import Trace

aten: Any = torch.ops.aten
_CONSTANTS = {
    aten.zeros.default: 0.0,
    aten.zeros_like.default: 0.0,
    aten.new_zeros.default: 0.0,
    aten.ones.default: 1.0,
    aten.ones_like.default: 1.0,
    aten.new_ones.default: 1.0,
}
_FILLED = (aten.full.default, aten.full_like.default, aten.new_full.default)
_COPIES = (aten.clone.default, aten.detach.default, aten.alias.default, aten._to_copy.default)


@dataclass(frozen=True)
class Initial:
    """What one entry of state starts as: every element ``fill``, or, when None, the parameter.

    ``type`` is its logical type; for what the host keeps it is the value itself.
    """

    type: Any
    fill: float | None


def initial_state(trace: Trace, member: int = 0) -> dict[str, Initial] | None:
    """What the state of a member starts as; ``None`` where that depends on the gradient."""
    found: dict[str, Initial] = {}
    for slot, node in trace.first.items():
        if slot.member != member:
            continue
        if node in trace.recorder.known:
            found[slot.key] = Initial(trace.recorder.known[node], None)
            continue
        fill = _fill(node, trace)
        if fill is None and not _copies_param(node, trace, member):
            return None
        found[slot.key] = Initial(node.meta["val"], fill)
    return found


def _fill(node: fx.Node, trace: Trace) -> float | None:
    """The number that every element of ``node`` is, where there is one."""
    if node.target in _COPIES:
        return _fill(node.all_input_nodes[0], trace)
    if node.target in _CONSTANTS:
        return _CONSTANTS[node.target]
    if node.target not in _FILLED:
        return None
    value = node.args[1]
    return float(trace.recorder.known[value] if isinstance(value, fx.Node) else value)


def _copies_param(node: fx.Node, trace: Trace, member: int) -> bool:
    while node.op == "call_function" and node.target in _COPIES:
        node = node.all_input_nodes[0]
    return node is trace.inputs[Slot("param", "", member)]


def goes_on_alike(first: Trace, later: Trace) -> bool:
    """Whether ``later``, begun from the state that ``first`` made, computes what ``first`` did."""
    known: dict[tuple[fx.Node, fx.Node], bool] = {}
    start = {node: _begun(slot, first) for slot, node in later.inputs.items()}

    def alike(late: Any, early: Any) -> bool:
        if isinstance(late, fx.Node) and isinstance(early, fx.Node):
            if late in start:
                return start[late] is early
            if (late, early) not in known:
                same = late.target is early.target
                known[late, early] = same and alike(late.args, early.args)
                known[late, early] &= alike(late.kwargs, early.kwargs)
            return known[late, early]
        if isinstance(late, (list, tuple)) and isinstance(early, (list, tuple)):
            return len(late) == len(early) and all(map(alike, late, early))
        if isinstance(late, dict) and isinstance(early, dict):
            return late.keys() == early.keys() and all(alike(late[k], early[k]) for k in late)
        return type(late) is type(early) and repr(late) == repr(early)

    if later.results.keys() != first.results.keys():
        return False
    return all(alike(node, first.results[slot]) for slot, node in later.results.items())


def _begun(slot: Slot, first: Trace) -> fx.Node | None:
    return first.inputs.get(slot) or first.first.get(slot)
