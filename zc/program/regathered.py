"""Parameters that backward gathers again: which of its values are the same bits as forward's.

forward:   %w_full = c10d.wait_tensor(%w_gather)            (released behind its last reader)
backward:  %w_full_again = c10d.wait_tensor(%w_gather_1)    (the same op on the same shard)

What backward computes again reads backward's own values; the gathers it needs are brought up to it.
"""

from collections.abc import Collection, Hashable

from torch import fx
from torch.fx.node import map_arg

from zc.program.analysis import parameter_sources, turns
from zc.program.loops import Loop, loop_by_node
from zc.program.stamps import BACKWARD, FORWARD, stamp_of
from zc.program.storages import storages_of
from zc.program.value_key import constant

Scope = tuple[int, Loop | None]  # a turn of forward and backward, and a loop in it
Twins = dict[Scope, dict[fx.Node, fx.Node]]  # backward's values by those of forward


def scopes_of(graph: fx.Graph) -> dict[fx.Node, Scope]:
    """The turn and the loop of each computed node."""
    turn, loops = turns(graph), loop_by_node(graph)
    return {node: (number, loops.get(node)) for node, number in turn.items()}


def regathered(graph: fx.Graph, changing: Collection[int]) -> Twins:
    """For each scope of backward, its values that equal what forward computed from parameters.

    Parameters in storages of ``changing``, which may be written to in between, have none.
    """
    sources = parameter_sources(graph, (FORWARD, BACKWARD))
    first: dict[Hashable, fx.Node] = {}
    same: dict[fx.Node, fx.Node] = {}
    for node in sources:
        if any(k in changing for s in node.all_input_nodes for k in storages_of(s)):
            continue
        args, kwargs = map_arg((node.args, node.kwargs), lambda n: same.get(n, n))
        same[node] = first.setdefault((node.target, constant(args), constant(kwargs)), node)
    equal: dict[fx.Node, list[fx.Node]] = {}
    for node, original in same.items():
        if stamp_of(node).phase == FORWARD:
            equal.setdefault(original, []).append(node)
    scopes, found = scopes_of(graph), Twins()
    for node, original in same.items():
        if stamp_of(node).phase == BACKWARD:
            for early in equal.get(original, ()):
                found.setdefault(scopes[node], {}).setdefault(early, node)
    return found
