"""What to save so that some values can be had again: a minimum cut over bytes.

Each value is an edge whose capacity is what saving it costs; a value that can be computed again
hangs on its operands, one that cannot on the source; what must be had later hangs on the sink. The
values on a cheapest cut are saved, those behind it computed again. Of all cheapest cuts the one
nearest to the sink is taken, which computes least.

This is how torch's min-cut partitioner decides (torch/_functorch/partitioners.py); recomputation as
such is from Chen et al., "Training Deep Nets with Sublinear Memory Cost" (arXiv:1604.06174), and
Jain et al., "Checkmate" (arXiv:1910.02653), has the general problem, with time and a budget.
"""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import networkx as nx

_SOURCE, _SINK = ("source",), ("sink",)


@dataclass(frozen=True)
class Choice:
    """A value: what it costs to save, and what it is computed from.

    ``cost`` is ``None`` where it must not be saved, and 0 where it is there anyway. ``operands`` is
    ``None`` where it cannot be computed again.
    """

    cost: int | None
    operands: tuple[Hashable, ...] | None


def computed_again(choices: Mapping[Hashable, Choice], wanted: Iterable[Hashable]) -> set[Hashable]:
    """The values to compute again so that all of ``wanted`` can be had at the least cost.

    Each of ``wanted`` can be both saved and computed again.
    """
    network, found = _network(choices, wanted), set()
    bound = set(network[_SOURCE]) if _SOURCE in network else set()
    for part in list(nx.weakly_connected_components(_inside(network))):
        behind = part
        if not bound.isdisjoint(part):
            _, (_, behind) = nx.minimum_cut(_flow(network, part, bound), _SOURCE, _SINK)
        found |= {value for value, end in behind - {_SOURCE, _SINK} if end == "in"}
    return found


def _inside(network: nx.DiGraph) -> nx.DiGraph:
    """``network`` without its ends, which parts of a program share and nothing else."""
    inside = nx.DiGraph(network)
    inside.remove_nodes_from([_SOURCE, _SINK])
    return inside


def _flow(network: nx.DiGraph, part: set[Any], bound: set[Any]) -> nx.DiGraph:
    """The edges of ``part``; a view of ``network`` would look at all that its ends lead to."""
    flow = nx.DiGraph()
    flow.add_edges_from((_SOURCE, node) for node in part & bound)
    flow.add_edges_from((a, b, data) for a in part for b, data in network[a].items())
    return flow


def _network(choices: Mapping[Hashable, Choice], wanted: Iterable[Hashable]) -> nx.DiGraph:
    """The values that ``wanted`` may be computed from, but for those that cost nothing."""
    network = nx.DiGraph()
    pending = list(wanted)
    for value in pending:
        network.add_edge((value, "out"), _SINK)
    seen = set(pending)
    while pending:
        value = pending.pop()
        choice = choices[value]
        capacity = {} if choice.cost is None else {"capacity": choice.cost}
        network.add_edge((value, "in"), (value, "out"), **capacity)
        if choice.operands is None:
            network.add_edge(_SOURCE, (value, "in"))
            continue
        for operand in choice.operands:
            if choices[operand].cost == 0:
                continue
            network.add_edge((operand, "out"), (value, "in"))
            if operand not in seen:
                seen.add(operand)
                pending.append(operand)
    return network
