"""From shards to the full parameter and back, as sequences of aten ops.

Written once over ``call``: a pass gives ``Editor.call`` and gets nodes, eager code gives ``run_op``
and gets tensors. With ``dim == 0`` and an aligned block, ``unpack`` is free: a gather's result is
the parameter.
"""

from collections.abc import Callable
from typing import Any

import torch

from zc.program.layout import Layout

Call = Callable[..., Any]
aten: Any = torch.ops.aten


def run_op(target: Any, *args: Any, name: str | None = None, **kwargs: Any) -> Any:
    """The eager ``call``: run ``target`` now."""
    del name
    return target(*args, **kwargs)


def unpack(call: Call, gathered: Any, layout: Layout, name: str | None = None) -> Any:
    """The full parameter, of ``layout.shape``, from all shards.

    Args:
        call: inserts or runs one op.
        gathered: the storages of all ranks one behind the other,
            ``[world * storage_shape[0], *storage_shape[1:]]``.
        layout: a layout that is not replicated.
        name: name of the node that holds the result, if one is inserted.
    """
    assert layout.dim is not None
    dim, value = layout.dim, gathered
    block_numel = torch.Size(layout.block_shape).numel()
    blocks = (layout.world, *layout.block_shape)
    if layout.flat:
        value = call(aten.view.default, value, [layout.world, layout.storage_numel])
        value = call(aten.slice.Tensor, value, 1, 0, block_numel)
        value = call(aten.clone.default, value, memory_format=torch.contiguous_format)
    whole = list(layout.block_shape)
    whole[dim] = layout.rows * layout.world
    if dim > 0:
        value = call(aten.view.default, value, list(blocks))
        order = [*range(1, dim + 1), 0, *range(dim + 1, len(blocks))]
        value = call(aten.permute.default, value, order)
        value = call(aten.clone.default, value, memory_format=torch.contiguous_format)
    if dim > 0 or layout.flat:
        value = call(aten.view.default, value, whole, name=name)
    if whole[dim] != layout.shape[dim]:
        value = call(aten.slice.Tensor, value, dim, 0, layout.shape[dim])
        if dim > 0:
            value = call(aten.clone.default, value, memory_format=torch.contiguous_format)
    return value


def pack(call: Call, full: Any, layout: Layout, *, contiguous: bool) -> Any:
    """All shards one behind the other, zeros in the padding; inverse of ``unpack``.

    Args:
        call: inserts or runs one op.
        full: a tensor of ``layout.shape``.
        layout: a layout that is not replicated.
        contiguous: whether ``full`` is contiguous; a copy makes it so otherwise.
    """
    assert layout.dim is not None
    dim, value, ndim = layout.dim, full, len(layout.shape)
    missing = layout.rows * layout.world - layout.shape[dim]
    if missing:
        padding = [0, 0] * (ndim - dim - 1) + [0, missing]
        value = call(aten.constant_pad_nd.default, value, padding, 0.0)
    elif not contiguous or dim > 0:
        value = call(aten.clone.default, value, memory_format=torch.contiguous_format)
    if missing and not contiguous:
        value = call(aten.clone.default, value, memory_format=torch.contiguous_format)
    if dim > 0:
        split = [*layout.shape[:dim], layout.world, *layout.block_shape[dim:]]
        value = call(aten.view.default, value, split)
        order = [dim, *range(dim), *range(dim + 1, ndim + 1)]
        value = call(aten.permute.default, value, order)
        value = call(aten.clone.default, value, memory_format=torch.contiguous_format)
    if layout.flat:
        block_numel = torch.Size(layout.block_shape).numel()
        value = call(aten.view.default, value, [layout.world, block_numel])
        extra = layout.storage_numel - block_numel
        value = call(aten.constant_pad_nd.default, value, [0, extra], 0.0)
    elif dim == 0:
        return value
    first, *rest = layout.storage_shape
    return call(aten.view.default, value, [layout.world * first, *rest])


def storage_of(local: torch.Tensor, layout: Layout) -> torch.Tensor:
    """The padded storage behind a ``DTensor`` local, as a tensor of ``storage_shape``.

    A local that ``zc.shard`` made is a view of such a storage and costs nothing; one that something
    else put in its place (``load_state_dict(assign=True)``, ``model.to``) is copied into padded
    storage.
    """
    if tuple(local.shape) == layout.storage_shape and local.is_contiguous():
        return local
    room = local.untyped_storage().nbytes() // local.element_size() - local.storage_offset()
    strides = torch.empty(layout.storage_shape, device="meta").stride()
    if local.is_contiguous() and room >= layout.storage_numel:
        return local.as_strided(layout.storage_shape, strides)
    padded = local.new_zeros(layout.storage_numel)
    local_view(padded, layout, tuple(local.shape)).copy_(local)
    return padded.view(layout.storage_shape)


def local_view(storage: torch.Tensor, layout: Layout, local_shape: tuple[int, ...]) -> torch.Tensor:
    """The ``DTensor`` local of ``local_shape`` as a contiguous view at the start of ``storage``."""
    if tuple(storage.shape) == local_shape:
        return storage
    strides = torch.empty(local_shape, device="meta").stride()
    return storage.as_strided(local_shape, strides)
