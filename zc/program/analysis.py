"""Facts about a graph that several passes ask for."""

import operator
from functools import cache
from typing import Any

import torch
from torch import fx

from zc.program.loops import Loop, loop_by_node
from zc.program.nodes import input_of, tensors_of, value_of
from zc.program.stamps import FORWARD, stamp_of
from zc.program.storages import storages_of, written_operands

_ACTS: dict[Any, bool] = {}  # of op overloads, whatever their arguments


def parameter_sources(graph: fx.Graph) -> dict[fx.Node, frozenset[str]]:
    """Forward values computed from parameters alone, with the parameters they come from.

    A value counts when at least one parameter goes into it and nothing else does but constants:
    the full parameter, its transpose, its cast, a weight-normalised weight. Inputs themselves do
    not count; a cache of a parameter is as the parameter.
    """
    free: set[fx.Node] = set()
    found: dict[fx.Node, frozenset[str]] = {}
    shards: dict[fx.Node, frozenset[str]] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            free.add(node)
        elif node.op == "placeholder" and input_of(node).kind == "param":
            shards[node] = frozenset({input_of(node).subject})
        elif node.op == "placeholder" and stamp_of(node).param:
            shards[node] = frozenset({stamp_of(node).param})
        if node.op != "call_function" or stamp_of(node).phase != FORWARD or _writes(node):
            continue
        sources = node.all_input_nodes
        names = [found.get(s) or shards.get(s) for s in sources if s not in free]
        if not names:
            free.add(node)
        elif all(names):
            found[node] = frozenset().union(*names)  # type: ignore[arg-type]
    return found


def turns(graph: fx.Graph) -> dict[fx.Node, int]:
    """Number of the turn, forward or backward, that each computed node is taken in, from 0.

    Writes and sizes begin no turn: they stand where torch left them.
    """
    found: dict[fx.Node, int] = {}
    turn, phase = 0, FORWARD
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if stamp_of(node).phase != phase and not (_is_size(node) or _writes(node)):
            turn, phase = turn + 1, stamp_of(node).phase
        found[node] = turn
    return found


def _is_size(node: fx.Node) -> bool:
    return isinstance(value_of(node), (torch.SymInt, torch.SymFloat, torch.SymBool))


def reads_no_values(node: fx.Node) -> bool:
    """Whether an op looks at the type of its operand alone: ``empty_like``, a size."""
    name = getattr(node.target, "__name__", "").split(".")[0]
    return name.endswith("_like") or name.startswith(("new_", "sym_"))


def sink(graph: fx.Graph, nodes: set[fx.Node], *, into_loops: bool = True) -> None:
    """Move each of ``nodes`` down to just before its first user, keeping their order valid.

    Unless ``into_loops``, what stands before a loop over micro-batches stays before it. What reads
    a storage that the graph writes to stays where it is. Linear in the graph: nodes are taken from
    the end, so users are where they will stay; those that land before one anchor are stacked
    upwards in front of it.
    """
    order: dict[fx.Node, tuple[int, int]] = {n: (i, 0) for i, n in enumerate(graph.nodes)}
    anchor_of: dict[fx.Node, fx.Node] = {}
    head: dict[fx.Node, fx.Node] = {}
    written = written_storages(graph)
    loops: dict[fx.Node, Loop] = {} if into_loops else loop_by_node(graph)
    nodes_upwards: list[fx.Node] = list(graph.nodes)[::-1]
    for count, node in enumerate(nodes_upwards):
        if node not in nodes or not node.users or _reads(node, written):
            continue
        first = min(node.users, key=order.__getitem__)
        if first in loops and loops.get(node) is not loops[first]:
            first = loops[first].begin
        anchor = anchor_of.get(first, first)
        head.get(anchor, anchor).prepend(node)
        head[anchor] = node
        anchor_of[node] = anchor
        order[node] = (order[anchor][0], -count)


def written_storages(graph: fx.Graph) -> set[int]:
    """Identities of the storages that some node of ``graph`` writes to."""
    return {k for n in graph.nodes for value in written_operands(n) for k in storages_of(value)}


def writes_by_storage(graph: fx.Graph, last: fx.Node) -> dict[int, list[fx.Node]]:
    """What writes to each storage, by its identity, in order and up to ``last``."""
    found: dict[int, list[fx.Node]] = {}
    for node in graph.nodes:
        for key in {k for value in written_operands(node) for k in storages_of(value)}:
            found.setdefault(key, []).append(node)
        if node is last:
            break
    return found


def _reads(node: fx.Node, storages: set[int]) -> bool:
    return any(k in storages for source in node.all_input_nodes for k in storages_of(source))


def dependents(graph: fx.Graph, roots: set[fx.Node]) -> list[fx.Node]:
    """``roots`` and every computed node that depends on one, in order."""
    reached = set(roots)
    found = []
    for node in graph.nodes:
        if node in reached or any(s in reached for s in node.all_input_nodes):
            reached.add(node)
            if node.op == "call_function":
                found.append(node)
    return found


def ancestors(node: fx.Node) -> set[fx.Node]:
    """``node`` and all that it is computed from."""
    found, pending = {node}, [node]
    while pending:
        new = [s for s in pending.pop().all_input_nodes if s not in found]
        found.update(new)
        pending += new
    return found


def _writes(node: fx.Node) -> bool:
    return _is_mutable(node.target)


@cache
def _is_mutable(target: Any) -> bool:
    schema: Any = getattr(target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


@cache
def _draws(target: Any) -> bool:
    overload = isinstance(target, torch._ops.OpOverload)
    return overload and torch.Tag.nondeterministic_seeded in target.tags


def is_random(node: fx.Node) -> bool:
    """Whether ``node`` draws from a generator behind the graph's back."""
    if node.op != "call_function" or not _draws(node.target):
        return False
    target: Any = node.target
    names = [a.name for a in target._schema.arguments]
    if "dropout_p" not in names:
        return True
    index = names.index("dropout_p")  # attention: random only when it drops
    given = node.args[index] if index < len(node.args) else node.kwargs.get("dropout_p", 0.0)
    return bool(given != 0.0)


def is_pure(node: fx.Node) -> bool:
    """Whether ``node`` is an aten op, or an item of its result, that only computes.

    On the same operands it gives the same bits each time, and nobody misses it where nobody reads
    it. Ops of zc, collectives, writes, numbers of the host and uninitialised memory do not count.
    """
    if node.target is operator.getitem:
        source: Any = node.args[0]
        return isinstance(source, fx.Node) and is_pure(source)
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    if not _only_computes(node.target) or not tensors_of(node):
        return False
    return not (acts(node) or is_random(node))


@cache
def _only_computes(target: torch._ops.OpOverload) -> bool:
    """Whether ``target`` is an aten op that fills what it returns and writes to nothing else."""
    namespace, name = target._schema.name.split("::")
    return namespace == "aten" and "empty" not in name and not _is_mutable(target)


def acts(node: fx.Node) -> bool:
    """Whether torch says that the op of ``node`` does more than to return values."""
    target = node.target
    if target not in _ACTS:
        _ACTS[target] = node.is_impure()
    return _ACTS[target]
