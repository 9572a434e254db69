"""Places in the order of a graph: where nodes stand, and how far one may be moved.

Computed nodes are numbered from 0; place ``i`` is the one before node ``i``, and the last place is
before the output. A *stretch* is a part of the order that no collective is moved out of: the body
of a loop over micro-batches, one turn of forward, one turn of backward with the updates in it.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from operator import getitem

import torch
from torch import fx
from torch.utils.flop_counter import flop_registry

from zc.program.effects import effects_in, effects_of
from zc.program.loops import BEGIN, END
from zc.program.nodes import value_of
from zc.program.program import Program
from zc.program.remembered import remembered
from zc.program.stamps import FORWARD, stamp_of
from zc.program.storages import storages_of, written_operands

_NUMBERS = (torch.SymInt, torch.SymFloat, torch.SymBool)
Group = tuple[int, Sequence[fx.Node]]  # a place, and the nodes to be moved there


@dataclass(frozen=True)
class Places:
    """The computed nodes of a graph by number.

    Attributes:
        nodes: in order.
        number: of each node.
        begins: by node, the first place of its stretch.
        ends: by node, the last place of its stretch.
        gaps: the places, in order, where an effect parts no two ops that may be compiled as one:
            before another effect and before a matrix product.
    """

    nodes: tuple[fx.Node, ...]
    number: dict[fx.Node, int]
    begins: list[int]
    ends: list[int]
    gaps: list[int]

    @cached_property
    def accesses(self) -> "Accesses":
        """Who reads and writes which storage."""
        return Accesses(self)

    def gap_from(self, place: int) -> int:
        """The first gap at ``place`` or behind it; the last place when there is none."""
        found = bisect_left(self.gaps, place)
        return self.gaps[found] if found < len(self.gaps) else len(self.nodes)

    def gap_up_to(self, place: int) -> int:
        """The last gap at ``place`` or before it; the first place when there is none."""
        found = bisect_right(self.gaps, place)
        return self.gaps[found - 1] if found else 0


def places_in(program: Program) -> Places:
    """The places of the graph of ``program``; worked out once for the same nodes."""
    return remembered(program, "places", lambda: places_of(program.graph, effects_in(program)))


def places_of(graph: fx.Graph, effects: AbstractSet[fx.Node] | None = None) -> Places:
    """The places of ``graph``, of which ``effects`` may be known."""
    nodes = tuple(node for node in graph.nodes if node.op == "call_function")
    begins, ends = _stretches(nodes)
    effects = effects_of(graph) if effects is None else effects
    gaps = [i for i, node in enumerate(nodes) if node in effects or _is_product(node)]
    return Places(nodes, {n: i for i, n in enumerate(nodes)}, begins, ends, [*gaps, len(nodes)])


def _is_product(node: fx.Node) -> bool:
    return getattr(node.target, "overloadpacket", None) in flop_registry


def _stretches(nodes: Sequence[fx.Node]) -> tuple[list[int], list[int]]:
    """First and last place of the stretch of each node."""
    starts, forward = [0], True
    for i, node in enumerate(nodes):
        if node.target in (BEGIN, END):
            starts += [i, i + 1]
            continue
        side = stamp_of(node).phase == FORWARD
        if side != forward and not _stays_where_torch_left_it(node):
            starts.append(i)
            forward = side
    starts = sorted({i for i in starts if i < len(nodes)})
    begins, ends = [], []
    for start, end in zip(starts, [*starts[1:], len(nodes)], strict=True):
        begins += [start] * (end - start)
        ends += [end] * (end - start)
    return begins, ends


def _stays_where_torch_left_it(node: fx.Node) -> bool:
    """Writes and sizes stand behind the phase that they belong to."""
    return isinstance(value_of(node), _NUMBERS) or bool(written_operands(node))


def move(places: Places, groups: Iterable[Group]) -> None:
    """Move each group of nodes to its place; groups that share one stand in the given order."""
    groups = list(groups)
    anchors = anchors_of(places, {node for _, nodes in groups for node in nodes})
    for place, nodes in groups:
        for node in nodes:
            anchors[place].prepend(node)


def anchors_of(places: Places, moved: AbstractSet[fx.Node]) -> list[fx.Node]:
    """For each place, the node that comes behind it and is none of ``moved``."""
    if not places.nodes:
        return []
    anchors = [places.nodes[0].graph.output_node()]
    for node in reversed(places.nodes):
        anchors.append(anchors[-1] if node in moved else node)
    return anchors[::-1]


def put_back(order: Sequence[fx.Node]) -> None:
    """Give a graph, whose nodes were in ``order``, that order again."""
    *others, output = order
    for node in others:
        output.prepend(node)


class Accesses:
    """Which node reads and which writes a storage, by number; an item is read for itself alone."""

    def __init__(self, places: Places) -> None:
        self._reads: dict[int, list[int]] = {}
        self._writes: dict[int, list[int]] = {}
        for i, node in enumerate(places.nodes):
            _enter(self._reads, i, [node] if node.target is getitem else node.all_input_nodes)
            _enter(self._writes, i, written_operands(node))

    def last_write(self, keys: Iterable[int], before: int) -> int:
        """The last node before number ``before`` that writes to one of ``keys``; -1 for none."""
        found = [self._writes[key] for key in keys if key in self._writes]
        return max((w[i - 1] for w in found if (i := bisect_left(w, before))), default=-1)

    def writes(self, keys: Iterable[int]) -> list[int]:
        """The numbers of the nodes that write to one of ``keys``, in order."""
        return sorted({number for key in keys for number in self._writes.get(key, ())})

    def last_read(self, keys: Iterable[int]) -> int:
        """The last node that reads one of ``keys``; -1 for none."""
        return max((self._reads[key][-1] for key in keys if key in self._reads), default=-1)

    def next_use(self, keys: Iterable[int], behind: int, own: set[int]) -> int | None:
        """The first node behind ``behind``, none of ``own``, that reads or writes one of them."""
        tables = (self._reads, self._writes)
        return _next([table[k] for k in keys for table in tables if k in table], behind, own)

    def next_write(self, keys: Iterable[int], behind: int, own: set[int]) -> int | None:
        """The first node behind ``behind``, none of ``own``, that writes to one of ``keys``."""
        return _next([self._writes[k] for k in keys if k in self._writes], behind, own)


def _enter(table: dict[int, list[int]], number: int, values: list[fx.Node]) -> None:
    """Add ``number``, the last so far, once to the row of each storage of ``values``."""
    for value in values:
        for key in storages_of(value):
            row = table.setdefault(key, [])
            if not row or row[-1] != number:
                row.append(number)


def _next(rows: list[list[int]], behind: int, own: set[int]) -> int | None:
    found = []
    for row in rows:
        at = bisect_right(row, behind)
        while at < len(row) and row[at] in own:
            at += 1
        found += row[at : at + 1]
    return min(found, default=None)
