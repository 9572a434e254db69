"""Which storage is live where: the memory of a program, from types alone.

A value lives from its node to its last use; storages are told apart by the identity of the fake
tensors' storages, so views cost nothing and keep their base alive. What a collective reads, and its
scratch memory, live until its wait. Inputs are live throughout: the caller holds them. What the
body of a loop reads from before it lives until the loop has ended.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import fx

from zc.program.collectives import (
    COLLECTIVES,
    hint,
    is_collective,
    is_wait,
    start_of,
)
from zc.program.loops import loop_by_node
from zc.program.nodes import tensors_of, value_of
from zc.program.stamps import stamp_of

_STORAGES = "zc_storages"  # with a node: its value, and what storages_of says of it


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


def written_operands(node: fx.Node) -> list[fx.Node]:
    """The operands that ``node`` writes to, from the schema of its op; most ops write to none."""
    if node.op != "call_function":
        return []
    written = []
    for position, name in _written_arguments(node.target):
        value = node.args[position] if position < len(node.args) else node.kwargs.get(name)
        items = value if isinstance(value, (list, tuple)) else [value]
        written += [item for item in items if isinstance(item, fx.Node)]
    return written


@cache
def _written_arguments(target: Any) -> tuple[tuple[int, str], ...]:
    schema = getattr(target, "_schema", None)
    if schema is None:
        return ()
    return tuple(
        (i, a.name)
        for i, a in enumerate(schema.arguments)
        if a.alias_info is not None and a.alias_info.is_write
    )


@dataclass(frozen=True)
class MemoryPoint:
    """Live bytes while ``node`` runs: its operands, its result and all that is read later."""

    node: fx.Node
    live_bytes: int


def storages_of(node: fx.Node) -> dict[int, int]:
    """Storages that the value of ``node`` keeps alive: identity to bytes; not to be changed.

    The answer is kept with the node, for as long as its value is the same object.
    """
    value = value_of(node)
    known = node.meta.get(_STORAGES)
    if known is not None and known[0] is value:
        return known[1]
    found = {}
    for tensor in tensors_of(node):
        storage = tensor.untyped_storage()
        found[storage._cdata] = hint(storage.nbytes())  # type: ignore[arg-type]
    node.meta[_STORAGES] = value, found
    return found


@dataclass
class _Holders:
    """How many live values hold each storage, and the bytes of all held ones."""

    live: int = 0
    counts: dict[int, int] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)

    def hold(self, node: fx.Node) -> None:
        for key, size in storages_of(node).items():
            if not self.counts.get(key):
                self.live += size
                self.sizes[key] = size
            self.counts[key] = self.counts.get(key, 0) + 1

    def release(self, node: fx.Node) -> None:
        for key in storages_of(node):
            self.counts[key] -= 1
            if not self.counts[key]:
                self.live -= self.sizes[key]


def memory_timeline(graph: fx.Graph) -> list[MemoryPoint]:
    """Live bytes at every node of ``graph`` in order, inputs and outputs included."""
    return [MemoryPoint(node, holders.live) for node, holders in _walk(graph)]


def peak_bytes(graph: fx.Graph) -> int:
    """Largest live bytes over ``graph``."""
    inputs = {k: v for n in graph.find_nodes(op="placeholder") for k, v in storages_of(n).items()}
    return max((p.live_bytes for p in memory_timeline(graph)), default=sum(inputs.values()))


def peak_by_phase(graph: fx.Graph) -> dict[str, int]:
    """Largest live bytes in each phase that ``graph`` has nodes of."""
    peaks: dict[str, int] = {}
    for point in memory_timeline(graph):
        phase = stamp_of(point.node).phase
        peaks[phase] = max(peaks.get(phase, 0), point.live_bytes)
    return peaks


def storage_lives(graph: fx.Graph) -> dict[int, tuple[fx.Node, fx.Node]]:
    """First and last node at which each computed storage is live."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    born: dict[int, fx.Node] = {}
    died: dict[int, fx.Node] = {}

    def live_at(at: fx.Node, value: fx.Node) -> None:
        for key in storages_of(value):
            if order[died.setdefault(key, at)] < order[at]:
                died[key] = at

    endings = _endings(graph)
    for node, values in last_uses(graph).items():
        started = endings.get(node)
        for value in (*values, *(started.all_input_nodes if started is not None else ())):
            live_at(node, value)
    for node in graph.nodes:
        for key in storages_of(node) if node.op == "call_function" else ():
            born.setdefault(key, node)
    return {key: (node, died[key]) for key, node in born.items()}


def largest_live(graph: fx.Graph, at: fx.Node, count: int = 5) -> list[tuple[fx.Node, int]]:
    """The ``count`` largest storages live at ``at``, each with the value that made it, in bytes."""
    owners: dict[int, fx.Node] = {}
    for node in graph.nodes:
        for key in storages_of(node):
            owners.setdefault(key, node)
    holders = next(holders for node, holders in _walk(graph) if node is at)
    live = [(owners[k], holders.sizes[k]) for k, n in holders.counts.items() if n]
    return sorted(live, key=lambda item: -item[1])[:count]


def _walk(graph: fx.Graph) -> Iterator[tuple[fx.Node, _Holders]]:
    dying, endings = last_uses(graph), _endings(graph)
    holders = _Holders()
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            holders.hold(node)
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        holders.hold(node)
        if is_collective(node):
            _hold_operands(holders, node)
        yield node, holders
        for value in dying.get(node, []):
            if value.op == "call_function":
                holders.release(value)
        started = endings.get(node)
        if started is not None:
            _release_operands(holders, started)


def _hold_operands(holders: _Holders, collective: fx.Node) -> None:
    for operand in collective.all_input_nodes:
        holders.hold(operand)
    holders.live += COLLECTIVES[collective.target].scratch(collective)


def _release_operands(holders: _Holders, collective: fx.Node) -> None:
    for operand in collective.all_input_nodes:
        holders.release(operand)
    holders.live -= COLLECTIVES[collective.target].scratch(collective)


def _endings(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """The first wait for each collective, which lets go of its operands and its scratch.

    By wait, with the collective.
    """
    ended: set[fx.Node] = set()
    found: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        start = start_of(node) if is_wait(node) else None
        if start is not None and start not in ended:
            ended.add(start)
            found[node] = start
    return found
