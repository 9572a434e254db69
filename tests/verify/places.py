"""Places in a program where a mutation applies, and what is asked of nodes there."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import fx

from zc.program.collectives import C10D, COLLECTIVES, is_collective, is_wait
from zc.program.nodes import tensors_of, value_of
from zc.program.program import Program
from zc.program.stamps import stamp_of
from zc.program.types import same_type

aten: Any = torch.ops.aten
SIZE_ARGUMENT = {C10D.all_gather_into_tensor.default: 1, C10D.reduce_scatter_tensor.default: 2}


def computed(program: Program) -> list[fx.Node]:
    return [n for n in program.nodes() if n.op == "call_function"]


def tensors(program: Program) -> list[fx.Node]:
    return [n for n in computed(program) if isinstance(value_of(n), torch.Tensor)]


def read_as_typed(program: Program) -> list[fx.Node]:
    """Tensors with a reader that does not cast them anyhow."""
    casts = (aten._to_copy.default, aten.copy_.default)
    return [n for n in tensors(program) if any(u.target not in casts for u in n.users)]


def waits(program: Program) -> list[fx.Node]:
    return [n for n in computed(program) if is_wait(n)]


def waits_of(lane: str) -> Callable[[Program], list[fx.Node]]:
    def places(program: Program) -> list[fx.Node]:
        return [n for n in waits(program) if COLLECTIVES[start_of(n).target].lane == lane]

    return places


def collectives(program: Program) -> list[fx.Node]:
    return [n for n in computed(program) if is_collective(n)]


def sized(program: Program) -> list[fx.Node]:
    return [n for n in collectives(program) if n.target in SIZE_ARGUMENT]


def swappable(program: Program) -> list[fx.Node]:
    """Nodes that stand directly behind something they read."""
    return [n for n in computed(program) if n.prev in n.all_input_nodes]


def feeding_own_phase(program: Program) -> list[fx.Node]:
    """Forward nodes with a forward reader."""
    return [n for n in computed(program) if phase(n) == "forward" and any_user(n, "forward")]


def views(program: Program) -> list[fx.Node]:
    return [
        n
        for n in tensors(program)
        if any(storage(t) == storage(value_of(n)) for s in n.all_input_nodes for t in tensors_of(s))
    ]


def regathered(program: Program) -> list[fx.Node]:
    """Waits in backward of a parameter that forward gathers too."""
    forward = {stamp_of(n).param for n in waits_of("gather")(program) if phase(n) == "forward"}
    again = [n for n in waits_of("gather")(program) if phase(n) == "backward"]
    return [n for n in again if stamp_of(n).param in forward]


def mistakable(program: Program) -> list[fx.Node]:
    """Gathers for which another parameter's shard would fit."""
    return [n for n in waits_of("gather")(program) if twin_of(program, start_of(n)) is not None]


def overtaking(program: Program) -> list[fx.Node]:
    """Collectives that could start before the one in front of them."""
    starts = collectives(program)
    order = {node: i for i, node in enumerate(program.nodes())}
    return [
        later
        for first, later in pairwise(starts)
        if all(order[s] < order[first] for s in later.all_input_nodes)
    ]


def parameter_inputs(program: Program) -> list[fx.Node]:
    return program.placeholders("param")


def gradient_outputs(program: Program) -> list[fx.Node]:
    values = zip(program.output_values(), program.outputs, strict=True)
    found = [v for v, info in values if info.kind == "grad" and v is not None]
    return found if len(found) > 1 else []


def writes(program: Program) -> list[fx.Node]:
    return [n for n in computed(program) if n.target is aten.copy_.default]


def returns(program: Program) -> list[fx.Node]:
    return [program.output_node()]


def phase(node: fx.Node) -> str:
    return stamp_of(node).phase


def any_user(node: fx.Node, name: str) -> bool:
    return any(user.op == "call_function" and phase(user) == name for user in node.users)


def storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def start_of(wait: fx.Node) -> fx.Node:
    (start,) = wait.all_input_nodes
    return start


def last_user(node: fx.Node) -> fx.Node:
    return max(node.users)


def twin_of(program: Program, start: fx.Node) -> fx.Node | None:
    """Another parameter's shard of the same type as what ``start`` gathers."""
    shard = start.all_input_nodes[0]
    for node in program.placeholders("param"):
        if node is not shard and same_type(value_of(node), value_of(shard)):
            return node
    return None
