"""Level 1: one joint program becomes the two callables that autograd needs."""

from typing import Any

import torch
from torch import fx

from zc import torch_private
from zc.program.nodes import input_of, set_input, value_of
from zc.program.program import Program
from zc.program.stamps import BACKWARD, FORWARD, stamp_of
from zc.program.tables import Input


def late_bound(name: str) -> torch.Tensor:
    """Stands for the read of late-bound state in a half; the executor binds it."""
    raise AssertionError(f"state {name!r} was not bound")


def split_program(program: Program) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The forward and backward halves of ``program.graph``, in AOTAutograd's calling convention.

    Every value that forward makes and backward reads is saved. The program itself stays as it is.
    """
    graph = _copy(program.graph)
    saved = _saved(graph, program.forward_outputs)
    halves = torch_private.split_joint(
        fx.GraphModule(program.constants, graph), *saved, program.forward_outputs
    )
    for half in halves:
        _restore_state(half.graph)
    return halves


def _copy(source: fx.Graph) -> fx.Graph:
    """A copy in which reads of state are calls, since AOTAutograd passes no argument for them."""
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in source.nodes:
        if node.op == "placeholder" and input_of(node).kind == "state":
            name = input_of(node).subject
            copy = graph.create_node("call_function", late_bound, (name,), name=node.name)
            copy.meta = dict(node.meta)
        else:
            copy = graph.node_copy(node, env.__getitem__)
        env[node] = copy
        if copy.op == "call_function":
            torch_private.tag_phase(copy, BACKWARD if _in_backward(copy) else FORWARD)
    return graph


def _in_backward(node: fx.Node) -> bool:
    return stamp_of(node).phase == BACKWARD


def _saved(
    graph: fx.Graph, forward_outputs: int
) -> tuple[list[fx.Node], list[fx.Node], list[fx.Node]]:
    """Tensors, numbers and opaque objects that backward reads from forward, each once, in order."""
    tensors, symbols, opaque = [], [], []
    (output,) = graph.find_nodes(op="output")
    values: Any = output.args[0]
    returned = {v for v in values[forward_outputs:] if isinstance(v, fx.Node)}
    for node in graph.nodes:
        computed_late = node.op == "call_function" and _in_backward(node)
        tangent = node.op == "placeholder" and input_of(node).kind == "tangent"
        if computed_late or tangent or node.op in ("output", "get_attr"):
            continue
        if node.op == "placeholder" and input_of(node).kind == "opaque":
            opaque.append(node)
        elif node in returned or any(_reads_late(user) for user in node.users):
            (tensors if isinstance(value_of(node), torch.Tensor) else symbols).append(node)
    return tensors, symbols, opaque


def _reads_late(user: fx.Node) -> bool:
    return user.op == "call_function" and _in_backward(user)


def _restore_state(graph: fx.Graph) -> None:
    """Turn reads of state back into placeholders and say what saved values are.

    State that backward reads is what forward read and saved: a seed draws the same numbers.
    """
    first = next(iter(graph.nodes))
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is late_bound:
            with graph.inserting_before(first):
                state = graph.placeholder(f"{node.name}_state")
            state.meta = dict(node.meta)
            node.replace_all_uses_with(state)
            graph.erase_node(node)
        elif node.op == "placeholder" and _is_saved(node):
            node.meta = dict(node.meta)
            set_input(node, Input("user", "saved"))


def _is_saved(node: fx.Node) -> bool:
    return "zc_input" not in node.meta or input_of(node).kind == "state"
