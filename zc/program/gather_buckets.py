"""Which gathers become one: in order of first use, at the place of the first, up to a limit."""

from bisect import bisect_right
from dataclasses import dataclass, field

import torch
from torch import fx

from zc.program.analysis import is_random
from zc.program.coalesce import candidates, coalesce
from zc.program.collectives import output_bytes
from zc.program.edit import Editor
from zc.program.stamps import stamp_of
from zc.program.storages import storages_of, written_operands

LONGEST = 16  # nodes between a shard and its gather that a bucket takes along


@dataclass
class Bucket:
    """Gathers in order, what computes their operands, and the bytes of all results."""

    members: list[fx.Node] = field(default_factory=list)
    producers: list[fx.Node] = field(default_factory=list)
    size: int = 0

    @property
    def params(self) -> set[str]:
        """The parameters gathered."""
        return {stamp_of(member).param for member in self.members}


def bucket_gathers(edit: Editor, limit: int, number: int) -> int:
    """Coalesce gathers into buckets of at most ``limit`` bytes, gathered.

    A bucket starts where its first member started, and takes along what computes the operands of
    the others: casts and views of shards. Waits stay where they are.

    Returns:
        How many buckets there are, counting those before ``number``.
    """
    order = {node: place for place, node in enumerate(edit.graph.nodes)}
    moved: set[fx.Node] = set()
    for bucket in _plan(edit.graph, order, limit):
        first = bucket.members[0]
        for producer in sorted(set(bucket.producers) - moved, key=order.__getitem__):
            first.prepend(producer)
            moved.add(producer)
        coalesce(edit, bucket.members, first, number)
        number += 1
    return number


def _plan(graph: fx.Graph, order: dict[fx.Node, int], limit: int) -> list[Bucket]:
    """Buckets of more than one member, by the place of the first."""
    writes = _writes(order)
    buckets: list[Bucket] = []
    current: dict[object, Bucket] = {}
    params: dict[int, set[str]] = {}
    for node, key in candidates(graph, "gather").items():
        size = output_bytes(node)
        bucket = current.get(key)
        producers: list[fx.Node] | None = []
        if bucket is not None:
            again = stamp_of(node).param in params[id(bucket)]
            fits = bucket.size + size <= limit and not again
            producers = _producers(node, bucket.members[0], order, writes) if fits else None
        if bucket is None or producers is None:
            bucket, producers = Bucket(), []
            current[key] = bucket
            buckets.append(bucket)
        bucket.members.append(node)
        bucket.producers += producers
        bucket.size += size
        params.setdefault(id(bucket), set()).add(stamp_of(node).param)
    return [bucket for bucket in buckets if len(bucket.members) > 1]


def _writes(order: dict[fx.Node, int]) -> dict[int, list[int]]:
    """Where each storage is written."""
    found: dict[int, list[int]] = {}
    for node, place in order.items():
        for key in (key for value in written_operands(node) for key in storages_of(value)):
            found.setdefault(key, []).append(place)
    return found


def _producers(
    gather: fx.Node, first: fx.Node, order: dict[fx.Node, int], writes: dict[int, list[int]]
) -> list[fx.Node] | None:
    """What has to move up with ``gather`` to stand before ``first``; ``None`` if that cannot be."""
    found: list[fx.Node] = []
    pending = [gather]
    while pending:
        node = pending.pop()
        if len(found) > LONGEST or _written_between(node, first, order, writes):
            return None
        sources = [s for s in node.all_input_nodes if order[s] > order[first] and s not in found]
        if not all(map(_is_movable, sources)):
            return None
        found += sources
        pending += sources
    return found


def _written_between(
    node: fx.Node, first: fx.Node, order: dict[fx.Node, int], writes: dict[int, list[int]]
) -> bool:
    """Whether what ``node`` reads is written between ``first`` and ``node``."""
    for key in (key for source in node.all_input_nodes for key in storages_of(source)):
        places = writes.get(key, [])
        if bisect_right(places, order[node]) > bisect_right(places, order[first]):
            return True
    return False


def _is_movable(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload) or node.target.namespace != "aten":
        return False
    return not (node.is_impure() or written_operands(node) or is_random(node))
