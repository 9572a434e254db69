"""What collectives and markers mean: from the operands of a group to each rank's result.

Each meaning takes one list of arguments for each rank, in rank order, and returns one result for
each.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from zc.comm.wire import sum_in_rank_order
from zc.program.collectives import C10D, COLLECTIVES, is_collective
from zc.program.kernels import FUSED_UPDATE, run_kernel
from zc.program.packing import local_view, pack, run_op, storage_of, unpack
from zc.program.partition import OWN_BLOCK
from zc.program.rounding import ROUND_STOCHASTIC, round_on
from zc.state.markers import GRAD, PARAM, layout_from_args

Arguments = list[list[Any]]
Meaning = Callable[[Arguments], list[Any]]


class Disagreement(Exception):
    """Ranks of one group that come to a collective with operands that do not fit together."""


def is_joint(node: fx.Node) -> bool:
    """True for a node whose result depends on other ranks, or on which rank it is.

    Collectives and markers, a rank's own block, stochastic rounding.
    """
    if node.target is FUSED_UPDATE:
        return len(node.args) > 5  # it has places
    return is_collective(node) or (node.op == "call_function" and node.target in _MEANINGS)


def axis_of(node: fx.Node) -> str:
    """The mesh axis that a collective or a marker communicates along."""
    if node.target is OWN_BLOCK:
        return str(node.args[1])
    if node.target in (ROUND_STOCHASTIC, FUSED_UPDATE):
        return str(node.args[-1])
    if node.target is PARAM:
        return str(node.args[3])
    if node.target is GRAD:
        return str(node.args[4])
    return str(node.args[COLLECTIVES[node.target].axis_arg])


def group_size_of(node: fx.Node) -> int | None:
    """The group size among the arguments of a collective or a marker; ``None`` without one."""
    position = _GROUP_SIZE_ARGUMENT.get(node.target)
    return None if position is None else int(node.args[position])  # type: ignore[arg-type]


def meaning_of(node: fx.Node) -> Meaning:
    """The meaning of a collective or a marker."""
    return _MEANINGS[node.target]


def _same(tensors: list[torch.Tensor]) -> None:
    kinds = [f"{t.dtype}{list(t.shape)}" for t in tensors]
    if len(set(kinds)) > 1:
        raise Disagreement("operands are " + ", ".join(kinds))


def _gather(shards: list[torch.Tensor]) -> list[torch.Tensor]:
    _same(shards)
    full = torch.cat([shard.contiguous() for shard in shards])
    return [full.clone() for _ in shards]


def _reduce(fulls: list[torch.Tensor], op: str) -> torch.Tensor:
    _same(fulls)
    operands = [full.contiguous() for full in fulls]
    if op in ("avg", "sum"):
        return sum_in_rank_order(operands, op)
    fold = {"max": torch.maximum, "min": torch.minimum, "product": torch.mul}[op]
    total = operands[0].clone()
    for operand in operands[1:]:
        total = fold(total, operand)
    return total


def _all_reduce(fulls: list[torch.Tensor], op: str) -> list[torch.Tensor]:
    total = _reduce(fulls, op)
    return [total.clone() for _ in fulls]


def _reduce_scatter(fulls: list[torch.Tensor], op: str) -> list[torch.Tensor]:
    total = _reduce(fulls, op)
    if total.shape[0] % len(fulls):
        raise Disagreement(f"{total.shape[0]} rows do not divide by {len(fulls)} ranks")
    rows = total.shape[0] // len(fulls)
    return [total[i * rows : (i + 1) * rows].clone() for i in range(len(fulls))]


def _all_to_all(calls: Arguments) -> list[torch.Tensor]:
    blocks = [operand.split(sent) for operand, _, sent, _ in calls]
    results = []
    for rank, (_, received, _, _) in enumerate(calls):
        mine = [sender[rank] for sender in blocks]
        sent = [len(block) for block in mine]
        if sent != list(received):
            raise Disagreement(f"position {rank} expects rows {list(received)}, is sent {sent}")
        results.append(torch.cat(mine))
    return results


def _coalesced(one: Callable[..., list[torch.Tensor]]) -> Callable[..., list[list[torch.Tensor]]]:
    def many(lists: list[list[torch.Tensor]], *options: str) -> list[list[torch.Tensor]]:
        if len({len(items) for items in lists}) > 1:
            raise Disagreement(f"operands number {[len(items) for items in lists]}")
        results = [one(list(tensors), *options) for tensors in zip(*lists, strict=True)]
        return [list(items) for items in zip(*results, strict=True)]

    return many


def _on_operands(one: Callable[..., list[Any]]) -> Meaning:
    return lambda calls: one([args[0] for args in calls])


def _with_op(one: Callable[..., list[Any]]) -> Meaning:
    return lambda calls: one([args[0] for args in calls], calls[0][1])


def _param(calls: Arguments) -> list[torch.Tensor]:
    layout = layout_from_args(*calls[0][1:5], calls[0][0].dtype)
    compute_dtype = calls[0][5]
    if layout.replicated:
        return [args[0].to(compute_dtype, copy=True) for args in calls]
    shards = [storage_of(args[0], layout) for args in calls]
    if compute_dtype.itemsize < shards[0].dtype.itemsize:
        shards = [shard.to(compute_dtype) for shard in shards]
    gathered = _gather(shards)
    return [unpack(run_op, full, layout).to(compute_dtype) for full in gathered]


def _grad(calls: Arguments) -> list[torch.Tensor]:
    local_shape, reduce_dtype, dtype = calls[0][1], *calls[0][6:8]
    layout = layout_from_args(*calls[0][2:6], dtype)
    fulls = [args[0].to(reduce_dtype) for args in calls]
    if layout.replicated:
        if layout.world == 1:
            return [full.to(dtype, copy=True) for full in fulls]
        return [total.to(dtype) for total in _all_reduce(fulls, "avg")]
    packed = [pack(run_op, full, layout, contiguous=full.is_contiguous()) for full in fulls]
    blocks = [block.to(dtype) for block in _reduce_scatter(packed, "avg")]
    return [local_view(block, layout, tuple(local_shape)) for block in blocks]


def _own_block(calls: Arguments) -> list[torch.Tensor]:
    return [whole.chunk(world)[rank].clone() for rank, (whole, _, world) in enumerate(calls)]


def _round(calls: Arguments) -> list[torch.Tensor]:
    return [round_on(rank, *args[:5]) for rank, args in enumerate(calls)]


def _kernel(calls: Arguments) -> list[None]:
    for rank, (written, read, numbers, kernel, _, places, _) in enumerate(calls):
        run_kernel(rank, written, read, numbers, kernel, places)
    return [None] * len(calls)


_GROUP_SIZE_ARGUMENT = {
    OWN_BLOCK: 2,
    C10D.all_gather_into_tensor.default: 1,
    C10D.all_gather_into_tensor_coalesced.default: 1,
    C10D.reduce_scatter_tensor.default: 2,
    C10D.reduce_scatter_tensor_coalesced.default: 2,
    PARAM: 4,
    GRAD: 5,
}
_MEANINGS: dict[Any, Meaning] = {
    C10D.all_gather_into_tensor.default: _on_operands(_gather),
    C10D.all_gather_into_tensor_coalesced.default: _on_operands(_coalesced(_gather)),
    C10D.reduce_scatter_tensor.default: _with_op(_reduce_scatter),
    C10D.reduce_scatter_tensor_coalesced.default: _with_op(_coalesced(_reduce_scatter)),
    C10D.all_reduce.default: _with_op(_all_reduce),
    C10D.all_reduce_coalesced.default: _with_op(_coalesced(_all_reduce)),
    C10D.all_to_all_single.default: _all_to_all,
    OWN_BLOCK: _own_block,
    ROUND_STOCHASTIC: _round,
    FUSED_UPDATE: _kernel,
    PARAM: _param,
    GRAD: _grad,
}
