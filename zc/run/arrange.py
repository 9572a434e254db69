"""The order in which the nodes of a program make few recorded parts.

    before:  first = w * x      numbers = lr * 2    scaled = first * numbers    second = first + x
    after:   [numbers]  [first, second: recorded]  [scaled]

Plain nodes stand in front of a recorded part or behind it, never inside, as far as values and
writes to storage allow; collectives are started and waited for in one part.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from zc.program.collectives import is_wait, start_of
from zc.program.loops import BEGIN, END, loop_by_node, loops_of
from zc.program.nodes import is_view
from zc.program.program import Program
from zc.program.storages import storages_of, written_operands
from zc.program.updates import keep_number
from zc.run.number_tables import put_numbers_in_tables
from zc.run.recordable import HOST, host_values, why_plain

MIN_LAUNCHES = 8  # so few are launched as fast by themselves
_KEPT = -1  # stands for what keep_number writes, beside identities of storages
Unit = tuple[fx.Node, ...]


@dataclass(frozen=True)
class Part:
    """Consecutive nodes that are recorded together, or run plainly."""

    nodes: Unit
    recorded: bool


@dataclass(frozen=True)
class Arrangement:
    """A graph in parts.

    Attributes:
        parts: in order; together they are the computed nodes of the graph.
        host: nodes whose values are on the host.
        reasons: why nodes on the device are not recorded.
    """

    parts: tuple[Part, ...]
    host: frozenset[fx.Node]
    reasons: Mapping[fx.Node, str]

    def note(self) -> str:
        """One line for dumps."""
        recorded = [part for part in self.parts if part.recorded]
        nodes = sum(len(part.nodes) for part in recorded)
        total = sum(len(part.nodes) for part in self.parts)
        text = f"cuda_graph: {nodes} of {total} nodes in {len(recorded)} recorded parts"
        grouped: dict[str, list[str]] = {}
        for node, reason in self.reasons.items():
            grouped.setdefault(reason, []).append(f"%{node.name}")
        for reason, names in grouped.items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            text += f"; not {', '.join(names[:3])}{more}: {reason}"
        return text


def arrange(program: Program, graph: fx.Graph, device_type: str) -> Arrangement:
    """Put the nodes of ``graph`` in an order with few recorded parts.

    Args:
        program: the tables.
        graph: is reordered.
        device_type: where recorded nodes compute.
    """
    put_numbers_in_tables(program, graph)
    host = host_values(program, graph, device_type)
    units = _units(graph)
    looped = loop_by_node(graph)
    reasons = {n: why for u in units for n in u if (why := why_plain(n, host, n in looped))}
    plain = {unit for unit in units if any(node in reasons for node in unit)}
    while True:
        parts = _schedule(units, plain)
        torn = _torn(parts)
        if not torn:
            break
        plain |= {unit for unit in units if not torn.keys().isdisjoint(unit)}
        reasons |= torn
    parts = [Part(p.nodes, p.recorded and _launches(p.nodes) >= MIN_LAUNCHES) for p in parts]
    (output,) = graph.find_nodes(op="output")
    for part in parts:
        for node in part.nodes:
            output.prepend(node)
    shown = {node: reason for node, reason in reasons.items() if reason != HOST}
    return Arrangement(tuple(parts), frozenset(host), shown)


def _units(graph: fx.Graph) -> list[Unit]:
    """What stays together, in order: a loop, a node and the items of its result, any other."""
    loops = {loop.begin: (loop.begin, *loop.body, loop.end) for loop in loops_of(graph)}
    inside = {node for nodes in loops.values() for node in nodes}
    found: list[Unit] = []
    for node in graph.nodes:
        if node in loops:
            found.append(loops[node])
        elif node.op == "call_function" and not (node in inside or _is_item(node)):
            found.append(tuple(_with_items(node)))
    return found


def _with_items(node: fx.Node) -> list[fx.Node]:
    found = [node]
    for value in found:  # grows meanwhile
        found += filter(_is_item, value.users)
    return found


def _is_item(node: fx.Node) -> bool:
    return node.target is operator.getitem


@dataclass
class _Group:
    """Units, and the storages that they read and write."""

    nodes: list[fx.Node] = field(default_factory=list)
    members: set[fx.Node] = field(default_factory=set)
    reads: set[int] = field(default_factory=set)
    writes: set[int] = field(default_factory=set)

    def add(self, unit: Unit, reads: set[int], writes: set[int]) -> None:
        self.nodes += unit
        self.members.update(unit)
        self.reads |= reads
        self.writes |= writes

    def holds_up(self, unit: Unit, reads: set[int], writes: set[int]) -> bool:
        """Whether ``unit`` has to stay behind this group."""
        if any(source in self.members for node in unit for source in node.all_input_nodes):
            return True
        return not (self.writes.isdisjoint(reads | writes) and self.reads.isdisjoint(writes))


def _schedule(units: Sequence[Unit], plain: set[Unit]) -> list[Part]:
    """Each recorded part takes all that does not depend on plain units behind its beginning."""
    parts: list[Part] = []
    before, run, later = _Group(), _Group(), _Group()
    for unit in units:
        touched = _touched(unit)
        if unit not in plain:
            if later.holds_up(unit, *touched):
                parts += _parts(before, run, later)
                before, run, later = _Group(), _Group(), _Group()
            run.add(unit, *touched)
        elif run.holds_up(unit, *touched) or later.holds_up(unit, *touched):
            later.add(unit, *touched)
        else:
            before.add(unit, *touched)
    return parts + _parts(before, run, later)


def _parts(before: _Group, run: _Group, later: _Group) -> list[Part]:
    groups = ((before, False), (run, True), (later, False))
    return [Part(tuple(group.nodes), recorded) for group, recorded in groups if group.nodes]


def _touched(unit: Unit) -> tuple[set[int], set[int]]:
    """The storages that a unit reads and writes."""
    reads = {k for node in unit for source in node.all_input_nodes for k in storages_of(source)}
    writes = {k for node in unit for value in written_operands(node) for k in storages_of(value)}
    if any(node.target is keep_number for node in unit):
        writes.add(_KEPT)
    return reads, writes


def _torn(parts: Iterable[Part]) -> dict[fx.Node, str]:
    """Recorded starts and waits whose counterpart is in another part."""
    part_of: dict[fx.Node, Part] = {node: part for part in parts for node in part.nodes}
    torn: dict[fx.Node, str] = {}
    for wait in filter(is_wait, part_of):
        start: Any = start_of(wait)
        if start in part_of and part_of[start] is not part_of[wait]:
            torn |= {
                n: "starts in one part, ends in another"
                for n in (start, wait)
                if part_of[n].recorded
            }
    return torn


def _launches(nodes: Iterable[fx.Node]) -> int:
    return sum(not (is_view(n) or is_wait(n) or n.target in (BEGIN, END)) for n in nodes)
