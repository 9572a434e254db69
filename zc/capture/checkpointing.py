"""``torch.utils.checkpoint`` in the user's code: what it tagged is computed again in backward.

before:  %tanh = aten.tanh(%mm)            ... %mul = aten.mul(%grad, %tanh)
after:   %tanh = aten.tanh(%mm)            ... %tanh_again = aten.tanh(%mm_again)  {recompute}
                                               %mul = aten.mul(%grad, %tanh_again)
"""

from torch import fx

from zc import torch_private
from zc.program.program import Program
from zc.program.stamps import BACKWARD, FORWARD, restamp, stamp_of
from zc.state.markers import PARAM


def recompute_tagged(program: Program) -> None:
    """Give backward its own copies of the tagged forward nodes that it reads, in place."""
    tagged = {n for n in program.graph.nodes if _is_tagged(n)}
    if not tagged:
        return
    copies: dict[fx.Node, fx.Node] = {}
    for node in list(program.graph.nodes):
        if node.op != "call_function" or stamp_of(node).phase != BACKWARD:
            continue
        for source in node.all_input_nodes:
            if source in tagged:
                copy = _copy(program.graph, source, node, tagged, copies)
                node.replace_input_with(source, copy)


def _is_tagged(node: fx.Node) -> bool:
    if node.op != "call_function" or stamp_of(node).phase != FORWARD or node.target is PARAM:
        return False
    return torch_private.must_recompute(node)


def _copy(
    graph: fx.Graph,
    source: fx.Node,
    before: fx.Node,
    tagged: set[fx.Node],
    copies: dict[fx.Node, fx.Node],
) -> fx.Node:
    """A copy of ``source`` and of the tagged nodes it needs, inserted before ``before``."""
    pending = [source]
    while pending:
        node = pending[-1]
        missing = [s for s in node.all_input_nodes if s in tagged and s not in copies]
        if missing:
            pending.extend(missing)
            continue
        pending.pop()
        if node in copies:
            continue
        with graph.inserting_before(before):
            copy = graph.node_copy(node, lambda n: copies.get(n, n))
        copy._rename(f"{node.name}_again")
        restamp(copy, phase=BACKWARD, recompute=True)
        copies[node] = copy
    return copies[source]
