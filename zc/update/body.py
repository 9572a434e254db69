"""From a trace to a ``Body``: what one class of parameters does in a step, and its conditions."""

from collections.abc import Iterable, Sequence

from torch import fx

from zc.program.updates import Body, Condition
from zc.update.recorder import Branch
from zc.update.trace import Trace


def body_of(trace: Trace, name: str, members: int) -> Body:
    """The body of the first ``members`` parameters of ``trace``; what does not change is left out.

    Inputs are those that the results or the conditions depend on, and the parameter and gradient.
    """
    results = {s: n for s, n in trace.results.items() if s.member < members}
    changed = {s: n for s, n in results.items() if trace.inputs.get(s) is not n}
    overwritten = [trace.inputs[slot] for slot in changed if slot in trace.inputs]
    kept = [*_always(trace, members), *overwritten]
    graph, copies = _copy(trace, [*changed.values()], kept)
    graph.output(tuple(copies[n] for n in changed.values()))
    checks, checked = _copy(trace, [branch.node for branch in trace.conditions])
    checks.output(tuple(checked[branch.node] for branch in trace.conditions))
    inputs = tuple(slot for slot, node in trace.inputs.items() if node in copies)
    return Body(
        name,
        graph,
        inputs,
        tuple(changed),
        checks,
        tuple(s for s, n in trace.inputs.items() if n in checked),
        tuple(_condition(branch, checked) for branch in trace.conditions),
    )


def mixes_members(trace: Trace) -> bool:
    """Whether some parameter's results depend on another parameter's inputs."""
    owner = {node: slot for slot, node in trace.inputs.items()}
    for slot, result in trace.results.items():
        read = [owner[n] for n in ancestors([result]) if n in owner]
        if any(s.role != "group" and s.member != slot.member for s in read):
            return True
    return False


def ancestors(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """``nodes`` and all that they are computed from."""
    found: set[fx.Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending.extend(node.all_input_nodes)
    return found


def _always(trace: Trace, members: int) -> list[fx.Node]:
    kept = [s for s in trace.inputs if s.role in ("param", "grad") and s.member < members]
    return [trace.inputs[slot] for slot in kept]


def _copy(
    trace: Trace, wanted: Sequence[fx.Node], keep: Sequence[fx.Node] = ()
) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """A graph of what ``wanted`` is computed from."""
    needed = ancestors([*wanted, *keep])
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in trace.recorder.graph.nodes:
        if node in needed:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    return graph, copies


def _condition(branch: Branch, copies: dict[fx.Node, fx.Node]) -> Condition:
    return Condition(copies[branch.node], branch.taken, branch.where)
