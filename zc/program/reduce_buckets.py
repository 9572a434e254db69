"""Which reductions become one: in the order in which gradients become complete, up to a limit.

One sweep over the graph. A reduction joins the open bucket of its kind; its wait, and what does no
more than settle the result (a cast, adding to what earlier micro-batches left), is *held*: it has
no place yet. A bucket is *started* where its last member stood. What it holds gets its place where
something else first needs a result, where another bucket starts while too much is under way, or
where the stretch of the program ends.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from zc.program.analysis import is_random, turns
from zc.program.coalesce import candidates, coalesce
from zc.program.collectives import input_bytes, is_wait
from zc.program.edit import Editor
from zc.program.loops import ACCUMULATOR, BEGIN, END
from zc.program.nodes import value_of
from zc.program.stamps import stamp_of
from zc.program.storages import storages_of, written_operands

SEVERAL = object()


@dataclass
class Bucket:
    """Reductions in order, what they hold in order, and the bytes of all operands."""

    members: list[fx.Node] = field(default_factory=list)
    held: list[fx.Node] = field(default_factory=list)
    size: int = 0


@dataclass
class Sweep:
    """What is known while nodes are visited in order.

    Attributes:
        edit: of the graph.
        limit: bytes of the operands of a bucket, and of all buckets under way.
        number: of the next bucket.
        order: the places of nodes at the beginning.
        joining: buckets that may grow, by what their members share.
        flying: buckets that were started, in order.
        owner: the bucket of each member and of each held node.
        used: by storage, the bucket that reads or writes it late; ``SEVERAL`` if several do.
        written: by storage, the bucket that writes it late.
    """

    edit: Editor
    limit: int
    number: int
    order: dict[fx.Node, int]
    joining: dict[Any, Bucket] = field(default_factory=dict)
    flying: list[Bucket] = field(default_factory=list)
    owner: dict[fx.Node, Bucket] = field(default_factory=dict)
    used: dict[int, Any] = field(default_factory=dict)
    written: dict[int, Any] = field(default_factory=dict)

    def join(self, node: fx.Node, key: Any) -> None:
        """``node`` becomes a member of the open bucket, or opens one."""
        size = input_bytes(node)
        bucket = self.joining.get(key)
        if bucket is not None and bucket.size + size > self.limit:
            self.start(key)
            bucket = None
        if bucket is None:
            bucket = self.joining[key] = Bucket()
        bucket.members.append(node)
        bucket.size += size
        self._own(node, bucket)

    def hold(self, node: fx.Node, bucket: Bucket) -> None:
        """``node`` gets its place later."""
        bucket.held.append(node)
        self._own(node, bucket)
        for key in _keys(written_operands(node)):
            self.written[key] = bucket

    def start(self, key: Any) -> None:
        """The bucket is complete: it stands where its last member stood."""
        bucket = self.joining.pop(key)
        last = bucket.members[-1]
        place, at, behind = self.order[last], last, last.next
        if len(bucket.members) > 1:
            at = coalesce(self.edit, bucket.members, last, self.number)
            self.number += 1
        while self.flying and sum(b.size for b in self.flying) + bucket.size > self.limit:
            self._settle(self.flying.pop(0), at, place)
        self.flying.append(bucket)
        if bucket.size > self.limit:
            self._settle(self.flying.pop(), behind, place)

    def finish(self, before: fx.Node) -> None:
        """Start all buckets; all that is held stands before ``before``."""
        for key in list(self.joining):
            self.start(key)
        for bucket in self.flying:
            self._settle(bucket, before, self.order[before])
        self.flying.clear()
        self.used.clear()
        self.written.clear()

    def clashes(self, node: fx.Node, bucket: Bucket | None) -> bool:
        """Whether ``node`` touches a storage that others than ``bucket`` read or write late."""
        for key in _keys(written_operands(node)):
            if self.used.get(key, bucket) is not bucket:
                return True
        return bool(self.written) and any(
            self.written.get(key, bucket) is not bucket for key in _keys(node.all_input_nodes)
        )

    def _own(self, node: fx.Node, bucket: Bucket) -> None:
        self.owner[node] = bucket
        for key in _keys(node.all_input_nodes):
            self.used[key] = bucket if self.used.get(key, bucket) is bucket else SEVERAL

    def _settle(self, bucket: Bucket, before: fx.Node, place: int) -> None:
        """What ``bucket`` holds from above ``place`` stands before ``before``, the rest stays."""
        for node in bucket.held:
            if self.order[node] < place:
                before.prepend(node)
        for node in (*bucket.members, *bucket.held):
            del self.owner[node]


def bucket_reductions(edit: Editor, limit: int, number: int) -> int:
    """Coalesce reductions into buckets of at most ``limit`` bytes of whole gradients.

    What is under way has at most ``limit`` bytes too: a reduction's operands live until its wait.

    Returns:
        How many buckets there are, counting those before ``number``.
    """
    members = candidates(edit.graph, "reduce")
    turn, current = turns(edit.graph), 0
    nodes: list[fx.Node] = list(edit.graph.nodes)
    sweep = Sweep(edit, limit, number, {node: place for place, node in enumerate(nodes)})
    for node in nodes:
        border = node.op == "output" or node.target in (BEGIN, END)
        if border or turn.get(node, current) != current:
            current = turn.get(node, current)
            sweep.finish(node)
        _visit(sweep, node, members)
    return sweep.number


def _visit(sweep: Sweep, node: fx.Node, members: dict[fx.Node, Any]) -> None:
    if node.op != "call_function":
        return
    owners = [sweep.owner[s] for s in node.all_input_nodes if s in sweep.owner]
    if owners and node not in members and _settles(node, owners[0], sweep):
        sweep.hold(node, owners[0])
        return
    if owners or sweep.clashes(node, None):
        sweep.finish(node)
    if node in members:
        sweep.join(node, members[node])


def _settles(node: fx.Node, bucket: Bucket, sweep: Sweep) -> bool:
    """Whether ``node`` may wait with ``bucket``: it reads its results and sums of gradients."""
    if stamp_of(node).phase != stamp_of(bucket.members[0]).phase or sweep.clashes(node, bucket):
        return False
    if is_wait(node):
        return True
    aten = isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten"
    if not aten or is_random(node) or not isinstance(value_of(node), torch.Tensor):
        return False
    return all(sweep.owner.get(s) is bucket or _is_kept(s) for s in node.all_input_nodes)


def _is_kept(node: fx.Node) -> bool:
    """A value that is there all the time: an input, or what a loop adds up in."""
    return node.op == "placeholder" or node.target is ACCUMULATOR


def _keys(nodes: list[fx.Node]) -> list[int]:
    return [key for node in nodes for key in storages_of(node)]
