"""Move each parameter's update to where its gradient is ready, which frees the gradient there.

before:  %w1_grad: f32[16] = c10d.wait_tensor(%w1_grad_scatter)
         %w0_grad: f32[16] = c10d.wait_tensor(%w0_grad_scatter)
         -- update --
         %neg: number = neg(%sgd_lr_group_0)
         %w0_add: f32[16] = aten.add.Tensor(%w0, %w0_grad, alpha=%neg)
         %w0_copy: f32[16] = aten.copy_(%w0, %w0_add)
         %w1_add: f32[16] = aten.add.Tensor(%w1, %w1_grad, alpha=%neg)
         %w1_copy: f32[16] = aten.copy_(%w1, %w1_add)
after:   %w1_grad: f32[16] = c10d.wait_tensor(%w1_grad_scatter)
         -- update --
         %neg: number = neg(%sgd_lr_group_0)
         %w1_add: f32[16] = aten.add.Tensor(%w1, %w1_grad, alpha=%neg)
         %w1_copy: f32[16] = aten.copy_(%w1, %w1_add)
         -- backward --
         %w0_grad: f32[16] = c10d.wait_tensor(%w0_grad_scatter)
         -- update --
         %w0_add: f32[16] = aten.add.Tensor(%w0, %w0_grad, alpha=%neg)
         %w0_copy: f32[16] = aten.copy_(%w0, %w0_add)

An update moves no further up than the last read of what it writes, and than what it reads: behind a
norm of all gradients nothing moves, nor into a loop over micro-batches. Only order changes, so no
result does. Where no predicted peak of live bytes falls and the step gets no shorter, or where what
updates compute on the way would raise the peak of the step, before ``lower_update`` makes kernels
of them, they stay where they are (zc.cost.balance). The idea is that of Lv et al., "Full Parameter
Fine-tuning for Large Language Models with Limited Resources" (arXiv:2306.09782), section 3.1, for
any optimizer.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from torch import fx

from zc.cost.balance import rewrite_if_it_helps
from zc.program.collectives import is_collective, is_wait, operands_of, start_of
from zc.program.loops import loop_by_node
from zc.program.nodes import tensors_of
from zc.program.pass_base import Kind, Pass
from zc.program.places import put_back
from zc.program.program import Program
from zc.program.stamps import UPDATE, restamp, set_stamp, stamp_of
from zc.program.storages import storages_of, written_operands
from zc.program.units import Bytes

Order = dict[fx.Node, int]


@dataclass(frozen=True)
class FuseUpdate(Pass):
    """Update each parameter as soon as its gradient is there.

    Updates become buckets, which ``lower_update`` launches one by one.
    """

    kind: ClassVar[Kind] = "optional"
    requires: ClassVar[frozenset[str]] = frozenset({"sharded_update"})
    bucket_bytes: Bytes = Bytes(0)  # bytes of gradients that may wait for a common launch

    def run(self, program: Program) -> None:
        """Move the nodes of every parameter's update up, where that helps."""
        order = list(program.graph.nodes)
        stamps = {node: stamp_of(node) for node in order if stamp_of(node).phase == UPDATE}

        def undo() -> None:
            put_back(order)
            for node, stamp in stamps.items():
                set_stamp(node, stamp)

        doing = "updating parameters behind their gradients"
        rewrite_if_it_helps(program, self.name, lambda: self._moved(program), undo, doing)

    def _moved(self, program: Program) -> str:
        """Move updates, in the order of their gradients; what to say of it."""
        order = {node: index for index, node in enumerate(program.graph.nodes)}
        (*_, last_input) = program.placeholders()
        groups = independent(groups_of(program.graph))
        shared = early_numbers(program.graph)
        readers = last_readers(program.graph, groups)
        loops, early = loop_by_node(program.graph), {*shared}
        for group in groups:
            anchor = anchor_of(group, order, readers, early, last_input)
            group.anchor = loops[anchor].end if anchor in loops else anchor
        groups.sort(key=lambda group: order[group.anchor])
        if not groups:
            return ""
        first = groups[0].anchor
        late = [node for node in shared if order[node] > order[first]]  # what reads them may stay
        buckets = in_buckets(groups, self.bucket_bytes)
        move(buckets, {first: move_behind(first, late)})
        return f"updates behind their gradients: {len(groups)}, in buckets: {len(buckets)}"


@dataclass
class Group:
    """The nodes of one update, in order; it can stand behind ``anchor`` and no earlier."""

    nodes: list[fx.Node]
    anchor: fx.Node = field(init=False)

    def outside(self) -> list[fx.Node]:
        """What the update reads that is not part of it."""
        mine = set(self.nodes)
        return [s for node in self.nodes for s in node.all_input_nodes if s not in mine]

    def gradient_bytes(self) -> int:
        """Bytes of the computed values that it reads."""
        read = {node for node in self.outside() if node.op == "call_function"}
        return sum(t.numel() * t.element_size() for node in read for t in tensors_of(node))


def groups_of(graph: fx.Graph) -> list[Group]:
    """The update of each parameter."""
    found: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        stamp = stamp_of(node)
        if stamp.phase == UPDATE and stamp.param:
            found.setdefault(stamp.param, []).append(node)
    return [Group(nodes) for nodes in found.values()]


def independent(groups: list[Group]) -> list[Group]:
    """The updates that read nothing of another one (a cast of a gradient that two share)."""
    owner = {node: group for group in groups for node in group.nodes}
    return [g for g in groups if all(owner.get(node, g) is g for node in g.outside())]


def early_numbers(graph: fx.Graph) -> list[fx.Node]:
    """What updates share and the host computes from inputs alone: learning rates, step counts."""
    found: dict[fx.Node, None] = {}
    for node in graph.nodes:
        stamp = stamp_of(node)
        if node.op != "call_function" or stamp.phase != UPDATE or stamp.param:
            continue
        known = all(s.op == "placeholder" or s in found for s in node.all_input_nodes)
        if known and not node.is_impure() and not written_operands(node):
            found[node] = None
    return list(found)


def last_readers(graph: fx.Graph, groups: Iterable[Group]) -> dict[int, fx.Node]:
    """The last node before its update that reads each storage: its identity to that node.

    A collective reads its operands until its first wait.
    """
    waited: set[fx.Node] = set()
    updates = {node for group in groups for node in group.nodes}
    found: dict[int, fx.Node] = {}
    updated: set[int] = set()
    for node in graph.nodes:
        if node in updates:
            updated |= {key for value in written_operands(node) for key in storages_of(value)}
        elif node.op == "call_function":
            reads = [source for source in node.all_input_nodes if not is_collective(source)]
            start = start_of(node) if is_wait(node) else None
            if start is not None and start not in waited:
                waited.add(start)
                reads += operands_of(start)
            keys = {key for source in reads for key in storages_of(source)}
            found |= dict.fromkeys(keys - updated, node)
    return found


def anchor_of(
    group: Group,
    order: Order,
    readers: dict[int, fx.Node],
    shared: set[fx.Node],
    last_input: fx.Node,
) -> fx.Node:
    """The last of the nodes that an update must stand behind: what it reads, who reads before."""
    behind = [last_input, *(node for node in group.outside() if node not in shared)]
    written = [value for node in group.nodes for value in written_operands(node)]
    behind += [readers[key] for v in written for key in storages_of(v) if key in readers]
    return max(behind, key=order.__getitem__)


def in_buckets(groups: Iterable[Group], limit: int) -> list[list[Group]]:
    """Neighbours together, as long as the gradients of a bucket have at most ``limit`` bytes."""
    buckets: list[list[Group]] = []
    size = 0
    for group in groups:
        size += group.gradient_bytes()
        if not buckets or size > limit:
            buckets.append([])
            size = group.gradient_bytes()
        buckets[-1].append(group)
    return buckets


def move_behind(anchor: fx.Node, nodes: Iterable[fx.Node]) -> fx.Node:
    """Put ``nodes`` behind ``anchor`` in their order; the last of them, or ``anchor``."""
    for node in nodes:
        anchor.append(node)
        anchor = node
    return anchor


def move(buckets: Iterable[list[Group]], behind: dict[fx.Node, fx.Node]) -> None:
    """Put each bucket behind the last of its anchors, or behind what stands there by now."""
    for number, bucket in enumerate(buckets):
        anchor = bucket[-1].anchor
        nodes = [node for group in bucket for node in group.nodes]
        behind[anchor] = move_behind(behind.get(anchor, anchor), nodes)
        for node in nodes:
            restamp(node, bucket=number)
