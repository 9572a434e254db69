"""Which values of a compiled program are in memory, and for how long: a model of Inductor.

Between two effects, ops are compiled as one region (``zc.run.regions``). In it, Inductor calls
matrix products, attention and whatever else it does not generate by themselves, and what stands
between two such calls becomes one *kernel*. The model, checked against the memory that compiled
regions take in ``tests/program/test_fusion.py``:

- A value of an elementwise op, a lookup or a normalisation is *inlined*: each reader computes it
  again in registers. It is in memory only where a call reads it, or something outside the region.
- Results of calls, reductions, concatenations and scatters are in memory.
- A value lives until the kernel or call that reads it last ends, be it for a value inlined there;
  the loop hands a region the values that die in it.
- A product that is only added to something is computed where it is added, by the same call.
- An elementwise result takes over the memory of an operand of its size that is not read later.

Inductor also orders kernels for less memory and has limits on how much it inlines; both are left
out. So are the few bytes for each row that a normalisation keeps while its kernel runs.
"""

import operator
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import fx
from torch.utils.flop_counter import flop_registry

from zc.program.effects import effects_of, is_count
from zc.program.loops import BEGIN, loop_by_node
from zc.program.nodes import is_view, tensors_of
from zc.program.storages import storages_of

aten: Any = torch.ops.aten
_ADD, _PRODUCT = aten.add.Tensor, aten.mm.default
VIEW, INLINE, LOOP, SCATTER, CALL = "view", "inline", "loop", "scatter", "call"
_INLINED = frozenset({
    "_fused_rms_norm", "_fused_rms_norm_backward", "_log_softmax", "_log_softmax_backward_data",
    "_softmax", "_softmax_backward_data", "_to_copy", "arange", "clone",
    "constant_pad_nd", "copy", "embedding", "empty_like", "expand_copy", "flip", "full",
    "full_like", "gather", "index", "index_select", "native_dropout", "native_dropout_backward",
    "native_group_norm", "native_group_norm_backward", "native_layer_norm",
    "native_layer_norm_backward", "new_full", "new_ones", "new_zeros", "ones", "ones_like",
    "repeat", "roll", "scalar_tensor", "select_backward", "select_scatter", "slice_backward",
    "slice_scatter", "tril", "triu", "zeros", "zeros_like",
})  # fmt: skip
_LOOPS = frozenset({"argmax", "argmin", "cat", "logsumexp", "nll_loss_forward", "stack"})
_SCATTERS = frozenset({
    "embedding_dense_backward", "index_add", "index_put", "nll_loss_backward", "scatter",
    "scatter_add",
})  # fmt: skip
_IN_ORDER = frozenset({
    "_log_softmax", "_log_softmax_backward_data", "_softmax", "_softmax_backward_data",
    "_unsafe_view", "view",
})  # fmt: skip
_KINDS: dict[int, tuple[Any, str]] = {}  # by id of the op, with it: its hash takes longer


def kind_of(node: fx.Node) -> str:
    """What Inductor makes of ``node``: a view, a value inlined, a loop, a scatter or a call."""
    target = node.target
    known = _KINDS.get(id(target))
    if known is None:
        known = _KINDS[id(target)] = target, _kind_of_op(node)
    return known[1]


def _kind_of_op(node: fx.Node) -> str:
    name, target = _name(node), node.target
    if is_view(node) or name == "_unsafe_view":
        return VIEW
    if not isinstance(target, torch._ops.OpOverload) or target.overloadpacket in flop_registry:
        return CALL
    if name in _SCATTERS:
        return SCATTER
    if name in _INLINED or torch.Tag.pointwise in target.tags:
        return INLINE
    return LOOP if name in _LOOPS or torch.Tag.reduction in target.tags else CALL


def _name(node: fx.Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return schema.name.split("::")[-1] if schema is not None else ""


@dataclass(frozen=True)
class Fusion:
    """How the nodes of a graph are compiled.

    Attributes:
        order: place of every node.
        region: number of the compiled region of each node that is in one.
        kinds: of these nodes.
        kernel: for each of them that is no view and no call, the last node of its kernel.
        inlined: nodes whose (first) value is in no memory of its own.
    """

    order: dict[fx.Node, int]
    region: dict[fx.Node, int] = field(default_factory=dict)
    kinds: dict[fx.Node, str] = field(default_factory=dict)
    kernel: dict[fx.Node, fx.Node] = field(default_factory=dict)
    inlined: set[fx.Node] = field(default_factory=set)


def fusion_of(graph: fx.Graph, effects: AbstractSet[fx.Node] | None = None) -> Fusion:
    """The regions and kernels of ``graph``, and what they keep in registers.

    ``effects`` are those of ``graph`` where they are known, here and below.
    """
    found = Fusion({node: place for place, node in enumerate(graph.nodes)})
    for number, run in enumerate(_runs(graph, effects_of(graph) if effects is None else effects)):
        kinds = {node: kind_of(node) for node in run}
        if all(kind == VIEW for kind in kinds.values()):
            continue  # runs node by node
        added = (node for node in run if node.target is _ADD)
        late = {n: p for n in added if (p := _product_added(n, kinds)) is not None}
        kinds.update(dict.fromkeys(late, CALL))
        found.inlined.update(late.values())
        found.kinds.update(kinds)
        found.region.update(dict.fromkeys(run, number))
        last = None
        for node in reversed(run):
            if node in found.inlined:
                continue
            if kinds[node] == CALL:
                last = None
            elif kinds[node] != VIEW:
                last = last or node
                found.kernel[node] = last
    found.inlined.update(n for n, k in found.kinds.items() if k == INLINE and _is_inlined(n, found))
    return found


def _product_added(node: fx.Node, kinds: Mapping[fx.Node, str]) -> fx.Node | None:
    """The matrix product that the sum ``node`` alone reads: both are one call."""
    if node.kwargs.get("alpha", 1) != 1:
        return None
    products = [s for s in node.all_input_nodes if s.target is _PRODUCT and s in kinds]
    alone = [product for product in products if len(product.users) == 1]
    return alone[0] if len(node.all_input_nodes) == 2 and len(alone) == 1 else None


def _runs(graph: fx.Graph, effects: AbstractSet[fx.Node]) -> Iterator[list[fx.Node]]:
    """What stands between effects, as ``zc.run.regions`` splits a graph."""
    run: dict[fx.Node, None] = {}
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if node not in effects:
            run[node] = None
            continue
        early = is_count(node) and node.target is not BEGIN
        if early and run.keys().isdisjoint(node.all_input_nodes):
            continue
        if run:
            yield list(run)
            run = {}
    if run:
        yield list(run)


def _is_inlined(node: fx.Node, found: Fusion) -> bool:
    """Whether only ops of the same region that are no calls read the first value of ``node``."""
    mine = found.region[node]
    readers = [user for user in node.users if not _is_other_item(user)]
    for reader in readers:  # grows meanwhile
        if found.region.get(reader) != mine or found.kinds[reader] == CALL:
            return False
        if found.kinds[reader] == VIEW:
            readers += reader.users
    return bool(readers)


def _is_other_item(node: fx.Node) -> bool:
    return node.target is operator.getitem and node.args[1] != 0


@dataclass(frozen=True)
class Lives:
    """Lifetimes of the values of a graph.

    Attributes:
        deaths: place of the last node during which each computed value is live.
        absent: storages that are never in memory.
        taken: storages whose memory another value takes over, and the place of that value.
    """

    deaths: dict[fx.Node, int]
    absent: set[int] = field(default_factory=set)
    taken: dict[int, int] = field(default_factory=dict)


def fused_lives(graph: fx.Graph, effects: AbstractSet[fx.Node] | None = None) -> Lives:
    """Lifetimes of the values of ``graph``, of which regions are compiled."""
    fusion = fusion_of(graph, effects)
    reads = _last_reads(graph, fusion)
    nodes = list(graph.nodes)
    deaths = {}
    for node, place in reads.items():
        kernel = fusion.kernel.get(nodes[place])
        deaths[node] = place if kernel is None else fusion.order[kernel]
    absent = {_storage(node) for node in fusion.inlined}
    return Lives(deaths, absent, dict(_taken_over(fusion, reads)))


def _last_reads(graph: fx.Graph, fusion: Fusion) -> dict[fx.Node, int]:
    """Place of the node that reads each computed value last, itself or what was inlined of it."""
    order, loops = fusion.order, loop_by_node(graph)
    inlined, kinds = fusion.inlined, fusion.kinds
    found: dict[fx.Node, int] = {}
    through: dict[fx.Node, int] = {}  # where what a node reads has been read

    def read_at(value: fx.Node, reader: fx.Node) -> int:
        loop = loops.get(reader)
        if loop is not None and loops.get(value) is not loop:
            return order[loop.end]
        return through.get(reader, order[reader])

    for node in reversed(graph.nodes):
        if node.op != "call_function":
            continue
        own = everything = last = order[node]
        for reader in node.users:
            place = read_at(node, reader) if loops else through.get(reader, order[reader])
            item = reader.target is operator.getitem  # which lives on by itself
            end = order[reader] if item else place
            everything = place if place > everything else everything
            last = end if end > last else last
        lazy = node in inlined or kinds.get(node) == VIEW
        through[node] = everything if lazy else own
        found[node] = last
    return found


def _taken_over(fusion: Fusion, reads: dict[fx.Node, int]) -> Iterator[tuple[int, int]]:
    """Storages that end where an elementwise result of the same size takes their memory over."""
    last: dict[int, int] = {}
    for node, place in reads.items():
        for key in storages_of(node):
            if place > last.get(key, -1):
                last[key] = place
    gone: set[int] = set()
    for node in fusion.kinds:
        if node in fusion.inlined or not _keeps_order(node) or not tensors_of(node):
            continue
        place = fusion.order[node]
        for source in _operands(node, fusion):
            key = _storage(source)
            if last[key] != place or key in gone:
                continue
            if _nbytes(source) == _nbytes(node) and fusion.kinds[source] in (CALL, INLINE):
                gone.add(key)
                yield key, place
                break


def _keeps_order(node: fx.Node) -> bool:
    """Whether each element of the result is made where the one like it of an operand is read."""
    return isinstance(node.target, torch._ops.OpOverload) and _keeps_order_of(node.target)


@cache
def _keeps_order_of(target: torch._ops.OpOverload) -> bool:
    name = target._schema.name.split("::")[-1]
    return torch.Tag.pointwise in target.tags or name in _IN_ORDER


def _operands(node: fx.Node, fusion: Fusion) -> Iterator[fx.Node]:
    """The values in memory, made in its region, that ``node`` and what is inlined in it read."""
    seen: set[fx.Node] = set()
    pending = [node]
    while pending:
        for source in pending.pop().all_input_nodes:
            if source in seen or fusion.region.get(source) != fusion.region[node]:
                continue
            seen.add(source)
            if source in fusion.inlined or fusion.kinds[source] == VIEW:
                if _keeps_order(source):
                    pending.append(source)
            elif tensors_of(source):
                yield source


def _storage(node: fx.Node) -> int:
    """The storage of the first tensor of ``node``."""
    return next(iter(storages_of(node)))


def _nbytes(node: fx.Node) -> int:
    return next(iter(storages_of(node).values()))
