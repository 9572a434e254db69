"""Turn parameter reads into gathers and gradients into reductions, as a ZeRO stage places them.

before:
  %w_full: f32[8, 4] = zc.param(%w, [8, 4], 0, "dp", 4, f32, f32, 0)
  %w_grad: f32[2, 4] = zc.grad(%mm_1, [2, 4], [8, 4], 0, "dp", 4, f32, f32, 0)
after:
  %w_gather: f32[8, 4] = c10d.all_gather_into_tensor(%w, 4, "dp")
  %w_full: f32[8, 4] = c10d.wait_tensor(%w_gather)
  %w_grad_scatter: f32[2, 4] = c10d.reduce_scatter_tensor(%mm_1, "avg", 4, "dp")
  %w_grad: f32[2, 4] = c10d.wait_tensor(%w_grad_scatter)

In a loop over micro-batches stages 2 and 3 reduce each micro-batch's gradient and add up shards;
stages 0 and 1 add up whole gradients and reduce the sum behind the loop, as every stage does for
parameters that each rank keeps whole. Stage 3 gathers in the loop, the others before it. No stage
gathers what nothing reads.

The stages are those of Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion
Parameter Models" (arXiv:1910.02054), section 5.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from zc.errors import PipelineError
from zc.program.analysis import dependents, parameter_sources, sink, turns
from zc.program.collectives import C10D, WAIT
from zc.program.edit import Editor, Replaced, erase_dead, node_name
from zc.program.loop_sums import reduce_behind_loop
from zc.program.loops import loop_by_node
from zc.program.nodes import value_of
from zc.program.packing import pack, unpack
from zc.program.pass_base import Kind, Pass
from zc.program.program import Program
from zc.program.recompute import copy_chain
from zc.program.retype import retype
from zc.program.stamps import stamp_of
from zc.program.storages import storages_of, written_operands
from zc.program.tables import Param
from zc.program.units import Bytes
from zc.program.updates import is_marker
from zc.program.views import viewed_by
from zc.state.markers import GRAD, PARAM

aten: Any = torch.ops.aten


@dataclass(frozen=True)
class ShardParams(Pass):
    """Markers become gather + wait and reduce + wait, where ``zero_stage`` places them.

    0: parameters replicated, gradients all-reduced. 1: parameters gathered once a step, gradients
    reduce-scattered together at its end. 2: as 1, each gradient reduce-scattered as soon as it is
    complete. 3: parameters gathered where they are used, released, and gathered again in backward.
    """

    kind: ClassVar[Kind] = "required"
    provides: ClassVar[frozenset[str]] = frozenset({"sharded_params"})
    zero_stage: int = 3  # 0, 1, 2 or 3
    persist_below: Bytes = Bytes(0)  # bytes of a full parameter; smaller ones stay gathered
    persist_vectors: bool = False  # those of one dimension stay gathered: norms, biases

    def __post_init__(self) -> None:
        if self.zero_stage not in (0, 1, 2, 3):
            raise PipelineError(f"zero_stage must be 0, 1, 2 or 3, not {self.zero_stage!r}")

    def run(self, program: Program) -> None:
        """Rewrite every marker of ``program``.

        Raises:
            PipelineError: when parameters at rest do not suit the stage.
        """
        check_at_rest(program, self.zero_stage)
        edit = Editor(program, program.graph, made_by=self.name)
        erase_dead(program.graph, list(parameter_sources(program.graph)))
        reads = program.graph.find_nodes(op="call_function", target=PARAM)
        for read in reads:
            cast_before_gather(edit, read)
        kept = [p.name for p in program.params.values() if self._persists(p)]
        if self.zero_stage == 3:
            gather_again(edit, set(kept))
        into_loops = self.zero_stage == 3
        sink(program.graph, set(parameter_sources(program.graph)), into_loops=into_loops)
        grads = program.graph.find_nodes(op="call_function", target=GRAD)
        reduce_behind_loop(edit, [g for g in grads if self.zero_stage < 2 or _is_whole(edit, g)])
        grads = program.graph.find_nodes(op="call_function", target=GRAD)
        if self.zero_stage == 1:
            move_to_end(program.graph, set(grads))
        else:
            reduce_when_complete(program.graph, grads)
        reads = program.graph.find_nodes(op="call_function", target=PARAM)
        gone = Replaced({n for n in program.graph.nodes if n.op == "output" or is_marker(n)})
        for read in reads:
            gone.replace(read, lower_read(edit, read))
        loops = loop_by_node(program.graph)
        for grad in grads:
            gone.replace(grad, lower_gradient(edit, grad, summed=grad in loops))
        gone.erase(program.graph)
        retype(program, program.graph)  # views of a marker's result share another storage now
        program.rules |= {"zero_stage": self.zero_stage, "kept_gathered": tuple(kept)}

    def _persists(self, param: Param) -> bool:
        vector = self.persist_vectors and len(param.shape) < 2
        return vector or _full_bytes(param) < self.persist_below


def check_at_rest(program: Program, zero_stage: int) -> None:
    """Refuse sharded parameters under stage 0 and unsharded ones under the others."""
    for param in program.params.values():
        if zero_stage == 0 and not param.layout.replicated:
            raise PipelineError(
                f"parameter '{param.name}' is sharded, and zero_stage 0 keeps parameters whole; "
                f"use zero1, zero2 or zero3, or do not call zc.shard on this model"
            )
        unsharded = param.trainable and not param.managed and param.layout.world > 1
        if zero_stage > 0 and unsharded:
            raise PipelineError(
                f"parameter '{param.name}' is not sharded, and zero_stage {zero_stage} needs it "
                f"to be; call zc.shard(model) before the optimizer is built, or use zero0"
            )


def cast_before_gather(edit: Editor, read: fx.Node) -> None:
    """Gather in the dtype of the readers when all of them cast to one smaller dtype."""
    casts = list(read.users)
    if not casts or any(set(c.kwargs) != {"dtype"} or not _is_cast(c) for c in casts):
        return
    dtypes = {c.kwargs["dtype"] for c in casts}
    dtype: Any = next(iter(dtypes))
    if len(dtypes) > 1 or dtype.itemsize >= value_of(read).dtype.itemsize:
        return
    with edit.before(read, param=stamp_of(read).param):
        small = edit.call(PARAM, *read.args[:5], dtype, *read.args[6:], name=read.name)
    for cast in casts:
        cast.replace_all_uses_with(small)
    erase_dead(edit.graph, casts)


def gather_again(edit: Editor, kept: set[str]) -> None:
    """Give backward its own copies of what forward computed from parameters alone.

    Where forward and backward take turns (several losses in one step), so does each turn.
    """
    sources, turn = parameter_sources(edit.graph), turns(edit.graph)
    wanted = {n: names for n, names in sources.items() if not names <= kept}
    copies: dict[fx.Node, fx.Node] = {}
    current = 0
    for node in [n for n in edit.graph.nodes if n.op == "call_function"]:
        if turn[node] != current:
            turn |= dict.fromkeys(copies.values(), current)
            wanted |= {copy: wanted[original] for original, copy in copies.items()}
            current, copies = turn[node], {}
        for source in node.all_input_nodes:
            if source in wanted and turn.get(source, current) != current:
                again = copy_chain(edit, source, node, wanted, copies)
                node.replace_input_with(source, again)
    erase_dead(edit.graph, list(sources))


def move_to_end(graph: fx.Graph, grads: set[fx.Node]) -> None:
    """Put gradient reductions, and all that reads them, behind everything else.

    Where what they read is written to meanwhile, they stay where they are.
    """
    (output,) = graph.find_nodes(op="output")
    late = dependents(graph, grads)
    moved = set(late)
    writes = [n for n in graph.nodes if n not in moved and written_operands(n)]
    written = {k for n in writes for value in written_operands(n) for k in storages_of(value)}
    if any(k in written for n in late for s in n.all_input_nodes for k in storages_of(s)):
        return
    for node in late:
        output.prepend(node)


def reduce_when_complete(graph: fx.Graph, grads: list[fx.Node]) -> None:
    """Put each gradient's reduction right behind what computes the gradient, and views of that.

    In a loop, adding it up comes next. What a loop has summed is complete when the loop ends.
    """
    loops = loop_by_node(graph)
    for grad in grads:
        moved = [grad]
        place = grad.all_input_nodes[0]
        while (source := viewed_by(place)) and _same_phase(source, place):
            moved.append(place)
            place = source
        if loops.get(place) is loops.get(grad):
            for node in moved:
                place.append(node)
        if grad in loops:
            grad.append(next(iter(grad.users)))


def _same_phase(node: fx.Node, other: fx.Node) -> bool:
    return node.op == other.op == "call_function" and stamp_of(node).phase == stamp_of(other).phase


def lower_read(edit: Editor, read: fx.Node) -> fx.Node:
    """What takes the place of ``zc.param``: cast, gather, wait and unpacking."""
    param = edit.program.params[stamp_of(read).param]
    shard: Any = read.args[0]
    dtype: Any = read.args[5]
    layout, name = param.layout, read.name.replace("_read", "_full")
    value = shard
    with edit.before(read, param=param.name):
        if layout.replicated:
            if dtype != param.dtype:
                value = edit.call(aten._to_copy.default, value, dtype=dtype, name=name)
        else:
            early = dtype.itemsize <= param.dtype.itemsize
            if early and dtype != param.dtype:
                value = edit.call(aten._to_copy.default, value, dtype=dtype)
            gather = edit.call(
                C10D.all_gather_into_tensor.default,
                *(value, layout.world, layout.axis),
                name=f"{shard.name}_gather",
            )
            value = edit.call(WAIT, gather, name=name)
            value = unpack(edit.call, value, layout, name=f"{shard.name}_unpacked")
            if not early:
                value = edit.call(aten._to_copy.default, value, dtype=dtype)
    return value


def lower_gradient(edit: Editor, grad: fx.Node, *, summed: bool) -> fx.Node:
    """What takes the place of ``zc.grad``: cast, packing, reduction and wait.

    What is ``summed`` over micro-batches stays in the dtype of the reduction until then.
    """
    param = edit.program.params[stamp_of(grad).param]
    value: Any = grad.args[0]
    layout = param.layout
    subject = node_name(param.name)
    with edit.before(grad, param=param.name):
        if value_of(value).dtype != param.reduce_dtype:
            value = edit.call(aten._to_copy.default, value, dtype=param.reduce_dtype)
        if not layout.replicated:
            contiguous = value_of(value).is_contiguous()
            packed = pack(edit.call, value, layout, contiguous=contiguous)
            scatter = edit.call(
                C10D.reduce_scatter_tensor.default,
                *(packed, "avg", layout.world, layout.axis),
                name=f"{subject}_grad_scatter",
            )
            value = edit.call(WAIT, scatter, name=f"{subject}_grad")
        elif layout.world > 1:
            if not value_of(value).is_contiguous():  # an expanded or transposed gradient
                value = edit.call(aten.clone.default, value, memory_format=torch.contiguous_format)
            reduce = edit.call(
                C10D.all_reduce.default,
                *(value, "avg", layout.axis),
                name=f"{subject}_grad_reduce",
            )
            value = edit.call(WAIT, reduce, name=f"{subject}_grad")
        if value_of(value).dtype != param.dtype and not summed:
            value = edit.call(aten._to_copy.default, value, dtype=param.dtype)
    return value


def _is_whole(edit: Editor, grad: fx.Node) -> bool:
    return edit.program.params[stamp_of(grad).param].layout.replicated


def _is_cast(node: fx.Node) -> bool:
    return node.target is aten._to_copy.default


def _full_bytes(param: Param) -> int:
    return torch.Size(param.shape).numel() * param.compute_dtype.itemsize
