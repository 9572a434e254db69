"""The marker ops: where a logical program reads a parameter and where its gradient comes out.

    zc::param(shard)   the full parameter, in compute_dtype        (becomes gather + wait)
    zc::grad(full)     the shard of the gradient's average         (becomes reduce-scatter + wait)

``zc::grad`` is what autograd derives from ``zc::param``. ``tag`` tells the reads of different
parameters apart; capture sets it. Inside a compiled program both are rewritten by ``shard_params``;
run eagerly, they communicate at once, so sharded models also work uncompiled.
"""

from typing import Any

import torch

from zc.comm import wire
from zc.comm.groups import group_of, rank_on
from zc.program.layout import Layout, alignment
from zc.program.packing import local_view, pack, run_op, storage_of, unpack

_LAYOUT = "SymInt[] shape, int dim, str axis, int world"
_library = torch.library.Library("zc", "DEF")
_library.define(
    f"param(Tensor shard, {_LAYOUT}, "
    "ScalarType compute_dtype, ScalarType reduce_dtype, int tag=-1) -> Tensor"
)
_library.define(
    f"grad(Tensor full, SymInt[] local_shape, {_LAYOUT}, "
    "ScalarType reduce_dtype, ScalarType dtype, int tag=-1) -> Tensor"
)
PARAM: Any = torch.ops.zc.param.default
GRAD: Any = torch.ops.zc.grad.default


def layout_from_args(shape: Any, dim: int, axis: str, world: int, dtype: torch.dtype) -> Layout:
    """The layout that a marker's arguments describe; ``dim`` is -1 for a replicated parameter.

    ``dtype`` is that of the parameter at rest.
    """
    sizes = tuple(int(s) for s in shape)
    return Layout(axis, world, sizes, None if dim < 0 else dim, alignment(dtype.itemsize))


@torch.library.register_fake("zc::param")
def _param_type(shard, shape, dim, axis, world, compute_dtype, reduce_dtype, tag=-1):
    return shard.new_empty(shape, dtype=compute_dtype)


@torch.library.register_fake("zc::grad")
def _grad_type(full, local_shape, shape, dim, axis, world, reduce_dtype, dtype, tag=-1):
    return full.new_empty(local_shape, dtype=dtype)


def _param_now(shard, shape, dim, axis, world, compute_dtype, reduce_dtype, tag=-1):
    layout = layout_from_args(shape, dim, axis, world, shard.dtype)
    if layout.replicated:
        return shard.to(compute_dtype, copy=True)
    small = storage_of(shard, layout)
    if compute_dtype.itemsize < shard.dtype.itemsize:
        small = small.to(compute_dtype)
    full = unpack(run_op, wire.all_gather(small, group_of(axis)).wait(), layout)
    return full.to(compute_dtype)


def _grad_now(full, local_shape, shape, dim, axis, world, reduce_dtype, dtype, tag=-1):
    layout = layout_from_args(shape, dim, axis, world, dtype)
    full = full.to(reduce_dtype)
    if layout.replicated:
        if world == 1:
            return full.to(dtype, copy=True)
        return wire.all_reduce(full, group_of(axis)).wait().to(dtype)
    packed = pack(run_op, full, layout, contiguous=full.is_contiguous())
    block = wire.reduce_scatter(packed, group_of(axis)).wait().to(dtype)
    return local_view(block, layout, layout.local_shape(rank_on(axis)))


_library.impl("param", torch.compiler.disable(_param_now), "CompositeExplicitAutograd")
_library.impl("grad", torch.compiler.disable(_grad_now), "CompositeExplicitAutograd")


def _remember(ctx: Any, inputs: Any, output: Any) -> None:
    shard, shape, dim, axis, world, _, reduce_dtype, tag = inputs
    ctx.layout = (list(shard.shape), list(shape), dim, axis, world)
    ctx.dtypes = (reduce_dtype, shard.dtype, tag)


def _backward(ctx: Any, full_grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    grad = torch.ops.zc.grad(full_grad, *ctx.layout, *ctx.dtypes)
    return grad, None, None, None, None, None, None, None


torch.library.register_autograd("zc::param", _backward, setup_context=_remember)
