"""Which storage is live where: the memory of a program, from types alone.

A value lives from its node to its last use; storages are told apart by the identity of the fake
tensors' storages, so views cost nothing and keep their base alive. What a collective reads, and its
scratch memory, live until its wait. Inputs are live throughout: the caller holds them. What the
body of a loop reads from before it lives until the loop has ended.
"""

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from itertools import accumulate
from typing import NamedTuple

from torch import fx

from zc.program.collectives import (
    COLLECTIVES,
    is_coalesced,
    is_collective,
    is_wait,
)
from zc.program.effects import effects_in
from zc.program.fusion import Lives, fused_lives
from zc.program.loops import loop_by_node
from zc.program.program import Program
from zc.program.remembered import remembered
from zc.program.stamps import stamp_of
from zc.program.storages import storages_of


def last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """For each node, the values read there for the last time; unread ones die where made.

    What a loop reads from before it is read for the last time at its end.
    """
    loops = loop_by_node(graph)
    seen: set[fx.Node] = set()
    dying: dict[fx.Node, list[fx.Node]] = {}
    for node in reversed(graph.nodes):
        for source in node.all_input_nodes:
            if source not in seen:
                seen.add(source)
                loop = loops.get(node)
                at = node if loop is None or loops.get(source) is loop else loop.end
                dying.setdefault(at, []).append(source)
        if node not in seen and node.op == "call_function":
            seen.add(node)
            dying.setdefault(node, []).append(node)
    return dying


class MemoryPoint(NamedTuple):
    """Live bytes while ``node`` runs: its operands, its result and all that is read later."""

    node: fx.Node
    live_bytes: int


class Life(NamedTuple):
    """``nbytes`` that ``owner`` made are live from place ``first`` to place ``last``."""

    owner: fx.Node
    nbytes: int
    first: int
    last: int


def memory_timeline(graph: fx.Graph, *, fused: bool = False) -> list[MemoryPoint]:
    """Live bytes at every node of ``graph`` in order, inputs and outputs included.

    ``fused`` says whether regions are compiled, here and below: see ``zc.program.fusion``.
    """
    return timeline_of(graph, lives_of(graph, fused=fused))


def live_bytes(program: Program) -> list[int]:
    """Live bytes at every node of the graph of ``program``; worked out once for the same nodes."""

    def find() -> list[int]:
        effects = effects_in(program) if program.fused else None
        lives = lives_of(program.graph, fused=program.fused, effects=effects)
        return [point.live_bytes for point in timeline_of(program.graph, lives)]

    return remembered(program, ("live bytes", program.fused), find)


def timeline_of(graph: fx.Graph, lives: Mapping[int, Life]) -> list[MemoryPoint]:
    """The same, where the ``lives`` of its storages are known."""
    nodes = list(graph.nodes)
    changes = [0] * (len(nodes) + 1)
    for life in (*lives.values(), *_scratch(graph)):
        changes[life.first] += life.nbytes
        changes[life.last + 1] -= life.nbytes
    live = accumulate(changes)
    pairs = zip(nodes, live, strict=False)
    return [MemoryPoint(node, size) for node, size in pairs if node.op == "call_function"]


def peak_bytes(graph: fx.Graph, *, fused: bool = False) -> int:
    """Largest live bytes over ``graph``."""
    inputs = {k: v for n in graph.find_nodes(op="placeholder") for k, v in storages_of(n).items()}
    timeline = memory_timeline(graph, fused=fused)
    return max((p.live_bytes for p in timeline), default=sum(inputs.values()))


def peak_by_phase(graph: fx.Graph, *, fused: bool = False) -> dict[str, int]:
    """Largest live bytes in each phase that ``graph`` has nodes of."""
    return _largest(graph, [point.live_bytes for point in memory_timeline(graph, fused=fused)])


def peaks_of(program: Program) -> dict[str, int]:
    """The same of the graph of ``program``; worked out once for the same nodes."""
    return _largest(program.graph, live_bytes(program))


def _largest(graph: fx.Graph, live: list[int]) -> dict[str, int]:
    peaks: dict[str, int] = {}
    computed = [node for node in graph.nodes if node.op == "call_function"]
    for node, size in zip(computed, live, strict=True):
        phase = stamp_of(node).phase
        if size > peaks.get(phase, -1):
            peaks[phase] = size
    return peaks


def largest_live(
    graph: fx.Graph, at: fx.Node, count: int = 5, *, fused: bool = False
) -> list[tuple[fx.Node, int]]:
    """The ``count`` largest storages live at ``at``, each with the value that made it, in bytes."""
    place = next(place for place, node in enumerate(graph.nodes) if node is at)
    lives = lives_of(graph, fused=fused).values()
    live = [(x.owner, x.nbytes) for x in lives if x.first <= place <= x.last]
    return sorted(live, key=lambda item: -item[1])[:count]


def lives_of(
    graph: fx.Graph, *, fused: bool = False, effects: AbstractSet[fx.Node] | None = None
) -> dict[int, Life]:
    """The life of each storage in memory, in the order in which they begin.

    ``effects`` are those of ``graph`` where they are known.
    """
    order = {node: place for place, node in enumerate(graph.nodes)}
    lives = fused_lives(graph, effects) if fused else _plain_lives(graph, order)
    first: dict[int, tuple[fx.Node, int, int]] = {}
    last: dict[int, int] = {}
    deaths, absent = lives.deaths, lives.absent
    for node, place in order.items():
        given = node.op in ("placeholder", "get_attr")
        end = len(order) - 1 if given else deaths.get(node, place)
        for key, size in storages_of(node).items():
            if key in absent:
                continue
            if key not in first:
                first[key], last[key] = (node, size, 0 if given else place), end
            elif end > last[key]:
                last[key] = end
    for start in filter(is_collective, graph.nodes):
        end = _end_of(start, order)
        for key in (k for operand in start.all_input_nodes for k in storages_of(operand)):
            last[key] = max(last.get(key, 0), end)
    ends = {key: lives.taken.get(key, last[key] + 1) - 1 for key in first}
    return {key: Life(*life, ends[key]) for key, life in first.items()}


def _plain_lives(graph: fx.Graph, order: Mapping[fx.Node, int]) -> Lives:
    """Lifetimes where every node runs by itself."""
    dying = last_uses(graph)
    return Lives({value: order[node] for node, values in dying.items() for value in values})


def _scratch(graph: fx.Graph) -> Iterator[Life]:
    """What collectives use besides their operands and results."""
    order = {node: place for place, node in enumerate(graph.nodes)}
    for start in filter(is_collective, graph.nodes):
        size = COLLECTIVES[start.target].scratch(start)
        yield Life(start, size, order[start], _end_of(start, order))


def _end_of(start: fx.Node, order: Mapping[fx.Node, int]) -> int:
    """Place of the first wait for ``start``, which lets its operands and its scratch go."""
    items = start.users if is_coalesced(start) else [start]
    waits = [order[user] for item in items for user in item.users if is_wait(user)]
    return min(waits, default=len(order) - 1)
