"""Collectives on real process groups: started now, waited for later, their bytes counted.

On gloo, ``reduce_scatter`` moves as many bytes as an all-reduce and adds in an order of gloo's own.
Here a reduce-scatter is an all-to-all and a sum in rank order, and an all-reduce is that followed
by an all-gather: bytes equal the ring formulas, and results are the same bits for every ZeRO stage.
Other backends carry out their own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

_GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # before 2.13
_SCATTER = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_KINDS = {"avg": dist.ReduceOp.AVG, "sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX,
          "min": dist.ReduceOp.MIN, "product": dist.ReduceOp.PRODUCT}  # fmt: skip


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


class Pending:
    """A collective on its way; ``wait`` returns its result and may be called once."""

    def __init__(self, work: dist.Work | None, finish: Callable[[], torch.Tensor]) -> None:
        self._work = work
        self._finish = finish

    def wait(self) -> torch.Tensor:
        """Block (on CUDA: make the current stream wait) until done, and return the result.

        Raises:
            RuntimeError: from the backend, when a peer is gone or the group's timeout has passed.
        """
        if self._work is not None:
            self._work.wait()
            self._work = None  # it holds its operands and results, which _finish lets go
        result = self._finish()
        del self._finish
        return result


def all_gather(shard: torch.Tensor, group: dist.ProcessGroup) -> Pending:
    """Concatenation along dimension 0 of every rank's ``shard``: ``[N * d0, ...]``."""
    n = group.size()
    first, *rest = shard.shape
    shard = shard.contiguous()
    full = shard.new_empty((n * first, *rest))
    work = _GATHER(full, shard, group=group, async_op=True)
    METER.add("all_gather", _nbytes(full) * (n - 1) // n)

    def finish() -> torch.Tensor:
        del_ref.clear()  # the operand lives until the collective is done
        return full

    del_ref = [shard]
    return Pending(work, finish)


def reduce_scatter(full: torch.Tensor, group: dist.ProcessGroup, op: str = "avg") -> Pending:
    """This rank's block along dimension 0 of the reduction over ranks: ``[d0 / N, ...]``."""
    n = group.size()
    first, *rest = full.shape
    full = full.contiguous()
    METER.add("reduce_scatter", _nbytes(full) * (n - 1) // n)
    if not _ordered(group) or op not in ("avg", "sum"):
        block = full.new_empty((first // n, *rest))
        work = _SCATTER(block, full, _KINDS[op], group=group, async_op=True)
        keep = [full]
        return Pending(work, lambda: (keep.clear(), block)[1])
    blocks = torch.empty_like(full)
    work = dist.all_to_all_single(blocks, full, group=group, async_op=True)
    operands = [full]

    def finish() -> torch.Tensor:
        operands.clear()
        return sum_in_rank_order(list(blocks.view(n, first // n, *rest)), op)

    return Pending(work, finish)


def all_reduce(full: torch.Tensor, group: dist.ProcessGroup, op: str = "avg") -> Pending:
    """Sum or average of ``full`` over ranks, of the same shape; ``full`` is left alone."""
    n = group.size()
    METER.add("all_reduce", 2 * (n - 1) * -(-full.numel() // n) * full.element_size())
    if not _ordered(group) or op not in ("avg", "sum"):
        return _native_all_reduce(full, group, op)
    shape, numel = full.shape, full.numel()
    padded = full.reshape(-1)
    if numel % n:
        padded = torch.nn.functional.pad(padded, (0, n - numel % n))
    blocks = torch.empty_like(padded)
    work = dist.all_to_all_single(blocks, padded, group=group, async_op=True)
    operands, received = [padded], [blocks]  # each let go as soon as it has been used
    del full, padded, blocks

    def finish() -> torch.Tensor:
        operands.clear()
        mine = sum_in_rank_order(list(received[0].view(n, -1)), op)
        received.clear()
        whole = mine.new_empty(n * mine.numel())
        _GATHER(whole, mine, group=group)
        return whole[:numel].view(shape)

    return Pending(work, finish)


def sum_in_rank_order(blocks: list[torch.Tensor], op: str) -> torch.Tensor:
    """Sum (or average) of one block per rank, added in rank order: the reference meaning."""
    total = blocks[0].clone()
    for block in blocks[1:]:
        total += block
    return total.div_(len(blocks)) if op == "avg" else total


def _native_all_reduce(full: torch.Tensor, group: dist.ProcessGroup, op: str) -> Pending:
    result = full.clone(memory_format=torch.contiguous_format)
    work = dist.all_reduce(result, _KINDS[op], group=group, async_op=True)
    return Pending(work, lambda: result)


def _ordered(group: dist.ProcessGroup) -> bool:
    return dist.get_backend(group) in ("gloo", "cpu:gloo", "fake")


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
