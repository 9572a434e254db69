"""Which nodes of a program a CUDA graph can hold.

    1 - beta, lr * decay        plain, in front: the host computes them, from what it knows
    forward, backward           recorded
    loss scale's item()         plain, behind: the host waits for it
    fused update                recorded; its numbers are in a table that is filled in front

A recording repeats launches on the device, with the arguments that they were recorded with. What
the host knows anew at each call (numbers of the optimizer, step counts, tensors of the CPU) is no
part of it: nodes that compute or read such values run plainly, from call to call. Seeds are the
exception: the generators that a recording draws from are seeded in front of each replay. So are
the turns of a loop over micro-batches, which are the same at each call; a loop is recorded as a
whole or not at all.
"""

import torch
from torch import fx

from zc.capture.random_ops import DRAWS, MICRO_SEED
from zc.program.loops import BEGIN, END
from zc.program.nodes import input_of, tensors_of, value_of
from zc.program.program import Program
from zc.program.types import has_unbacked
from zc.program.updates import is_number, keep_number
from zc.run.number_tables import NUMBERS_ON

HOST = "the host computes it"
_ON_HOST = ("seed", "step", "hyperparameter")  # kinds of state, where all tensors are on the CPU


def host_values(program: Program, graph: fx.Graph, device_type: str) -> set[fx.Node]:
    """Nodes whose values the host has: numbers, and tensors that are not on the device.

    Where all tensors are on the CPU, state that is on the CPU everywhere tells which.
    """
    host: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "output":
            continue
        if is_number(value_of(node)):
            host.add(node)
        elif device_type != "cpu":
            if any(tensor.device.type != device_type for tensor in tensors_of(node)):
                host.add(node)
        elif node.op == "placeholder":
            state = program.state.get(input_of(node).subject)
            if input_of(node).kind == "state" and state is not None and state.kind in _ON_HOST:
                host.add(node)
        elif node.target not in (*DRAWS, NUMBERS_ON) and _known(node, host):
            host.add(node)
    return host


def _known(node: fx.Node, host: set[fx.Node]) -> bool:
    return bool(node.all_input_nodes) and all(source in host for source in node.all_input_nodes)


def why_plain(node: fx.Node, host: set[fx.Node], looped: bool) -> str | None:
    """Why ``node``, in a loop over micro-batches or not, cannot be recorded; ``None`` if it can."""
    if node.target in (BEGIN, END) or (node.target is MICRO_SEED and looped):
        return None
    if node.target is NUMBERS_ON:
        return HOST
    sources = [source for source in node.all_input_nodes if source.target is not BEGIN]
    read = [source for source in sources if source in host]
    if node in host or node.target is keep_number:
        return HOST if len(read) == len(sources) else "gives a value to the host"
    if read and node.target not in DRAWS:
        return "reads what the host computes anew at each call"
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return "has a body of its own"
    if any(has_unbacked(value_of(n)) for n in (node, *sources)):
        return "has a size that depends on data"
    if not all(tensors_of(source) for source in sources):
        return "reads what is no tensor"
    return None
