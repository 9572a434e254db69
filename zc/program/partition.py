"""Arithmetic on whole tensors, carried out on shards: what each op needs of the other ranks.

    w: whole [8, 4], at rest [2, 4] on each of four ranks
    mul(w, 2)         on each shard, nothing else
    norm(w)           a sum of squares on each shard, one all-reduce of a number
    w @ w.t()         an all-gather first; the result is whole on every rank

Each value is whole, the same on every rank, or sharded along one dimension as a ``Layout`` says. A
sharded value is kept as it is stored (padded, flat where that is needed for alignment), or as rows:
the block itself. This is the propagation of GSPMD (Xu et al., 2021, section 3) with one mesh axis.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from zc.program.collectives import C10D, WAIT
from zc.program.layout import Layout
from zc.program.nodes import value_of
from zc.program.packing import pack, unpack

aten: Any = torch.ops.aten
Call = Callable[..., fx.Node]

_library = torch.library.Library("zc", "FRAGMENT")
_library.define("own_block(Tensor whole, str axis, int world) -> Tensor")
OWN_BLOCK: Any = torch.ops.zc.own_block.default


@torch.library.register_fake("zc::own_block")
def _own_block_type(whole: torch.Tensor, axis: str, world: int) -> torch.Tensor:
    return whole.new_empty((whole.shape[0] // world, *whole.shape[1:]))


@dataclass(frozen=True)
class Local:
    """A value on one rank: ``node`` holds all of it, or its shard in the given ``layout``.

    ``rows`` says that a shard is its block as such, not the padded storage of it.
    """

    node: fx.Node
    layout: Layout | None = None
    rows: bool = False

    @property
    def sharded(self) -> bool:
        """Whether each rank has a part only."""
        return self.layout is not None

    @property
    def layout_(self) -> Layout:
        """The layout of a sharded value."""
        assert self.layout is not None
        return self.layout


def stored(node: fx.Node, layout: Layout) -> Local:
    """``node`` as a tensor at rest in ``layout``; whole where that is replicated."""
    return Local(node) if layout.replicated else Local(node, layout)


def to_rows(call: Call, value: Local) -> Local:
    """The block itself, without the padding behind it."""
    if not value.sharded or value.rows:
        return value
    node, layout = value.node, value.layout_
    if layout.flat:
        numel = torch.Size(layout.block_shape).numel()
        node = call(aten.slice.Tensor, node, 0, 0, numel)
        node = call(aten.view.default, node, list(layout.block_shape))
    return Local(node, layout, rows=True)


def to_storage(call: Call, value: Local) -> Local:
    """The block with the padding that storage has, zeros."""
    if not value.sharded or not value.rows:
        return value
    node, layout = value.node, value.layout_
    if layout.flat:
        numel = torch.Size(layout.block_shape).numel()
        node = call(aten.reshape.default, node, [numel])
        node = call(aten.constant_pad_nd.default, node, [0, layout.storage_numel - numel], 0.0)
    elif not value_of(node).is_contiguous():
        node = call(aten.clone.default, node, memory_format=torch.contiguous_format)
    return Local(node, layout)


def to_whole(call: Call, value: Local) -> Local:
    """All of it, gathered from every rank."""
    if not value.sharded:
        return value
    value = to_storage(call, value)
    layout = value.layout_
    gather = call(C10D.all_gather_into_tensor.default, value.node, layout.world, layout.axis)
    return Local(unpack(call, call(WAIT, gather), layout))


def own(call: Call, whole: fx.Node, layout: Layout) -> Local:
    """This rank's shard of ``whole``, as it is stored."""
    if layout.replicated:
        return Local(whole)
    packed = pack(call, whole, layout, contiguous=value_of(whole).is_contiguous())
    return Local(call(OWN_BLOCK, packed, layout.axis, layout.world), layout)


def without_padding(call: Call, value: Local, neutral: float) -> Local:
    """Rows in which those that belong to no rank are ``neutral``, for reductions."""
    value = to_rows(call, value)
    layout = value.layout_
    assert layout.dim is not None
    size = layout.shape[layout.dim]
    missing = layout.rows * layout.world - size
    if not missing:
        return value
    device = value_of(value.node).device
    there = call(aten.ones.default, [size], dtype=torch.bool, device=device)
    there = call(aten.constant_pad_nd.default, there, [0, missing], 0.0)
    there = call(OWN_BLOCK, there, layout.axis, layout.world)
    shape = [1] * len(layout.shape)
    shape[layout.dim] = layout.rows
    there = call(aten.view.default, there, shape)
    other = call(aten.full_like.default, value.node, neutral)
    return Local(call(aten.where.self, there, value.node, other), layout, rows=True)
