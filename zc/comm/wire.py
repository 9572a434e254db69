"""Collectives on real process groups: started now, waited for later, their bytes counted.

On gloo, ``reduce_scatter`` moves as many bytes as an all-reduce and adds in an order of gloo's own.
Here a reduce-scatter sends each block to its rank and sums in rank order, and an all-reduce is that
followed by an all-gather: bytes equal the ring formulas, and results are the same bits for every
ZeRO stage, by itself or in a bucket. ``zc.comm.choice`` says how bytes travel. Other backends carry
out their own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.functional import pad

from zc.comm.choice import start
from zc.comm.pending import Pending, PendingBucket, Works
from zc.comm.ways import Blocks, Coalesced, nbytes

_SCATTER = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_C10D: Any = torch.ops._c10d_functional
_KINDS = {"avg": dist.ReduceOp.AVG, "sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX,
          "min": dist.ReduceOp.MIN, "product": dist.ReduceOp.PRODUCT}  # fmt: skip
Tensors = list[torch.Tensor]


@dataclass
class WireMeter:
    """Bytes this process sent since ``reset``, by collective: measured, not predicted."""

    sent: dict[str, int] = field(default_factory=dict)

    def add(self, op: str, nbytes: int) -> None:
        """Count ``nbytes`` sent by ``op``."""
        self.sent[op] = self.sent.get(op, 0) + nbytes

    def total(self) -> int:
        """All bytes sent."""
        return sum(self.sent.values())

    def reset(self) -> None:
        """Start from zero."""
        self.sent.clear()


METER = WireMeter()


def all_gather(shard: torch.Tensor, group: dist.ProcessGroup) -> Pending[torch.Tensor]:
    """Concatenation along dimension 0 of every rank's ``shard``: ``[N * d0, ...]``."""
    return _only(*_gather([shard], group))


def all_gather_bucket(shards: Tensors, group: dist.ProcessGroup) -> PendingBucket:
    """``all_gather`` of each of ``shards``, as one."""
    return PendingBucket(Pending(*_gather(shards, group)))


def reduce_scatter(
    full: torch.Tensor, group: dist.ProcessGroup, op: str = "avg"
) -> Pending[torch.Tensor]:
    """This rank's block along dimension 0 of the reduction over ranks: ``[d0 / N, ...]``."""
    return _only(*_reduce_scatter([full], group, op))


def reduce_scatter_bucket(
    fulls: Tensors, group: dist.ProcessGroup, op: str = "avg"
) -> PendingBucket:
    """``reduce_scatter`` of each of ``fulls``, as one."""
    return PendingBucket(Pending(*_reduce_scatter(fulls, group, op)))


def all_reduce(
    full: torch.Tensor, group: dist.ProcessGroup, op: str = "avg"
) -> Pending[torch.Tensor]:
    """Sum or average of ``full`` over ranks, of the same shape; ``full`` is left alone."""
    return _only(*_all_reduce([full], group, op))


def all_reduce_bucket(fulls: Tensors, group: dist.ProcessGroup, op: str = "avg") -> PendingBucket:
    """``all_reduce`` of each of ``fulls``, as one."""
    return PendingBucket(Pending(*_all_reduce(fulls, group, op)))


def _only(work: Any, finish: Callable[[], Tensors]) -> Pending[torch.Tensor]:
    return Pending(work, lambda: finish()[0])


Started = tuple[Any, Callable[[], Tensors]]


def _gather(shards: Tensors, group: dist.ProcessGroup) -> Started:
    shards = [shard.contiguous() for shard in shards]
    full = group.size() * sum(map(nbytes, shards))
    transfer = start("all_gather", shards, group, full)
    METER.add("all_gather", transfer.sent)
    fulls = list(transfer.received)

    def finish() -> Tensors:
        operands.clear()  # which live until the collective is done
        return fulls

    operands = shards
    return Works(transfer.works), finish


def _reduce_scatter(fulls: Tensors, group: dist.ProcessGroup, op: str) -> Started:
    n = group.size()
    fulls = [full.contiguous() for full in fulls]
    if not _in_rank_order(group, op):
        METER.add("reduce_scatter", sum(map(nbytes, fulls)) * (n - 1) // n)
        return _scatter_natively(fulls, group, op)
    shapes = [(full.shape[0] // n, *full.shape[1:]) for full in fulls]
    transfer = start(
        "reduce_scatter", [f.view(n, f.numel() // n) for f in fulls], group, sum(map(nbytes, fulls))
    )
    METER.add("reduce_scatter", transfer.sent)
    received: list[Blocks] = list(transfer.received)

    def finish() -> Tensors:
        operands.clear()
        sums = _sums(received, op)
        return [total.view(shape) for total, shape in zip(sums, shapes, strict=True)]

    operands = fulls
    return Works(transfer.works), finish


def _all_reduce(fulls: Tensors, group: dist.ProcessGroup, op: str) -> Started:
    n = group.size()
    if not _in_rank_order(group, op):
        blocks = [-(-full.numel() // n) * full.element_size() for full in fulls]
        METER.add("all_reduce", 2 * (n - 1) * sum(blocks))
        return _reduce_natively(fulls, group, op)
    shapes = [full.shape for full in fulls]
    padded = [_padded(full, n) for full in fulls]
    del fulls
    transfer = start("reduce_scatter", padded, group, sum(map(nbytes, padded)))
    METER.add("all_reduce", transfer.sent)
    received: list[Blocks] = list(transfer.received)

    def finish() -> Tensors:
        operands.clear()  # each let go as soon as it has been used
        mine = _sums(received, op)
        gathers = start("all_gather", mine, group, n * sum(map(nbytes, mine)))
        METER.add("all_reduce", gathers.sent)
        Works(gathers.works).wait()
        pairs = zip(gathers.received, shapes, strict=True)
        return [whole[: shape.numel()].view(shape) for whole, shape in pairs]

    operands = padded
    return Works(transfer.works), finish


def _padded(full: torch.Tensor, world: int) -> torch.Tensor:
    """``full`` as one row for each rank, with zeros behind it where it does not divide."""
    flat = full.reshape(-1)
    missing = -flat.numel() % world
    return (pad(flat, (0, missing)) if missing else flat).view(world, -(-flat.numel() // world))


def _sums(received: list[Blocks], op: str) -> Tensors:
    """The sum of each tensor's blocks; what was received is let go on the way."""
    received.reverse()
    sums = []
    while received:
        blocks = received.pop()
        sums.append(sum_in_rank_order(blocks.of_ranks, op, blocks.room))
    return sums


def sum_in_rank_order(blocks: Tensors, op: str, into: torch.Tensor | None = None) -> torch.Tensor:
    """Sum (or average) of one block per rank, added in rank order: the reference meaning.

    ``into`` is where it goes, a tensor of a block's shape that is none of ``blocks``.
    """
    first, *others = blocks
    into = torch.empty_like(first) if into is None else into
    total = torch.add(first, others[0], out=into) if others else into.copy_(first)
    for block in others[1:]:
        total += block
    return total.div_(len(blocks)) if op == "avg" else total


def _scatter_natively(fulls: Tensors, group: dist.ProcessGroup, op: str) -> Started:
    n = group.size()
    if len(fulls) > 1:
        blocks = _C10D.reduce_scatter_tensor_coalesced(fulls, op, n, group.group_name)
        return Coalesced(blocks), lambda: (fulls.clear(), blocks)[1]
    (full,) = fulls
    block = full.new_empty((full.shape[0] // n, *full.shape[1:]))
    work = _SCATTER(block, full, _KINDS[op], group=group, async_op=True)
    del full
    return work, lambda: (fulls.clear(), [block])[1]


def _reduce_natively(fulls: Tensors, group: dist.ProcessGroup, op: str) -> Started:
    if len(fulls) > 1:
        wholes = _C10D.all_reduce_coalesced(fulls, op, group.group_name)
        return Coalesced(wholes), lambda: wholes
    result = fulls[0].clone(memory_format=torch.contiguous_format)
    work = dist.all_reduce(result, _KINDS[op], group=group, async_op=True)
    return work, lambda: [result]


def _in_rank_order(group: dist.ProcessGroup, op: str) -> bool:
    """Whether zc itself adds up, in rank order; backends for accelerators have their own order."""
    return op in ("avg", "sum") and dist.get_backend(group) in ("gloo", "cpu:gloo", "fake")
