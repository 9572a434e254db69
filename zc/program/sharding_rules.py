"""Rules by kind of op: pointwise ops stay local, reductions need one number, others the whole.

``place`` carries out one node of a logical graph; what it reads decides what it needs.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from zc.program.collectives import C10D, WAIT
from zc.program.layout import Layout
from zc.program.nodes import value_of
from zc.program.partition import (
    Call,
    Local,
    own,
    to_rows,
    to_storage,
    to_whole,
    without_padding,
)

aten: Any = torch.ops.aten
Placed = dict[fx.Node, Local]
_SAME_SHAPE = (
    aten.clone.default, aten._to_copy.default, aten.zeros_like.default, aten.ones_like.default,
    aten.full_like.default, aten.empty_like.default, aten.copy.default, aten.fill.Scalar,
)  # fmt: skip


def place(call: Call, node: fx.Node, placed: Placed) -> Local:
    """Carry out ``node`` on local values.

    Args:
        call: inserts one op.
        node: of the logical graph; its type has the shape of the whole result.
        placed: where its operands are.
    """
    operands = [placed[source] for source in node.all_input_nodes]
    if not any(operand.sharded for operand in operands):
        return _emit(call, node, placed)
    if _is_pointwise(node):
        return _pointwise(call, node, placed)
    reduction = _REDUCTIONS.get(node.target)
    if reduction is not None:
        found = reduction(call, node, placed[node.args[0]])  # type: ignore[index]
        if found is not None:
            return found
    return _product(call, node, placed) or _on_whole(call, node, placed)


def _emit(call: Call, node: fx.Node, placed: Placed) -> Local:
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: placed[n].node)
    return Local(call(node.target, *args, **kwargs))


def _on_whole(call: Call, node: fx.Node, placed: Placed) -> Local:
    wholes = {n: to_whole(call, placed[n]) for n in node.all_input_nodes}
    placed.update(wholes)  # gathered once, however many ops ask for it
    return _emit(call, node, wholes)


def _product(call: Call, node: fx.Node, placed: Placed) -> Local | None:
    """Rows of a matrix product need the same rows of its left operand, and all of the right."""
    if node.target is not aten.mm.default:
        return None
    left, right = (placed[n] for n in node.args)  # type: ignore[union-attr]
    if right.sharded or not left.sharded or left.layout_.dim != 0:
        return None
    rows = to_rows(call, left)
    layout = replace(rows.layout_, shape=tuple(value_of(node).shape), dim=0)
    return Local(call(aten.mm.default, rows.node, right.node), layout, rows=True)


def _is_pointwise(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return torch.Tag.pointwise in node.target.tags or node.target in _SAME_SHAPE


def _pointwise(call: Call, node: fx.Node, placed: Placed) -> Local:
    shape = tuple(value_of(node).shape)
    operands = {n: placed[n] for n in node.all_input_nodes}
    layout = _common_layout([v.layout_ for v in operands.values() if v.sharded], shape)
    if layout is None:
        return _on_whole(call, node, placed)
    if all(_fits_storage(n, v, layout) for n, v in operands.items()):
        local = {n: to_storage(call, v) for n, v in operands.items()}
        return Local(_emit(call, node, local).node, layout)
    local = {n: _rows_of(call, n, v, layout) for n, v in operands.items()}
    return Local(_emit(call, node, local).node, layout, rows=True)


def _common_layout(layouts: Sequence[Layout], shape: tuple[int, ...]) -> Layout | None:
    """The layout of a result of ``shape``; ``None`` where operands are cut along other rows."""
    first = layouts[0]
    assert first.dim is not None
    from_end = first.dim - len(first.shape)
    for layout in layouts:
        assert layout.dim is not None
        if layout.dim - len(layout.shape) != from_end or layout.rows != first.rows:
            return None
    return replace(first, shape=shape, dim=len(shape) + from_end)


def _fits_storage(node: fx.Node, value: Local, layout: Layout) -> bool:
    """Whether an operand combines with storage of ``layout`` element by element."""
    if value.sharded:
        return value.layout == layout and (not value.rows or not layout.flat)
    tensor = value_of(node)
    return not isinstance(tensor, torch.Tensor) or tensor.dim() == 0


def _rows_of(call: Call, node: fx.Node, value: Local, layout: Layout) -> Local:
    """An operand beside rows of ``layout``: its own rows, or itself where it has one for all."""
    if value.sharded:
        return to_rows(call, value)
    tensor = value_of(node)
    assert layout.dim is not None
    from_end = layout.dim - len(layout.shape)
    if not isinstance(tensor, torch.Tensor) or tensor.dim() < -from_end:
        return value
    if tensor.shape[from_end] == 1 and layout.shape[layout.dim] != 1:
        return value
    mine = replace(layout, shape=tuple(tensor.shape), dim=tensor.dim() + from_end)
    return to_rows(call, own(call, value.node, mine))


def _dims(node: fx.Node, position: int, ndim: int) -> list[int]:
    """The dimensions that a reduction takes away, all of them where none are given."""
    given: Any = node.args[position] if len(node.args) > position else None
    given = node.kwargs.get("dim", given)
    if given is None or given == []:
        return list(range(ndim))
    return [d % ndim for d in ([given] if isinstance(given, int) else given)]


def _reduced(call: Call, node: fx.Node, value: Local, local: fx.Node, dims: list[int], op: str,
             keepdim: bool) -> Local:  # fmt: skip
    """``local``, reduced over rows, on its way to all ranks where rows were taken away."""
    layout = value.layout_
    assert layout.dim is not None
    if layout.dim in dims:
        reduce = call(C10D.all_reduce.default, local, op, layout.axis)
        return Local(call(WAIT, reduce))
    before = 0 if keepdim else sum(d < layout.dim for d in dims)
    shape = tuple(value_of(node).shape)
    return Local(local, replace(layout, shape=shape, dim=layout.dim - before), rows=True)


def _keeps(node: fx.Node, position: int) -> bool:
    given = node.args[position] if len(node.args) > position else False
    return bool(node.kwargs.get("keepdim", given))


def _sum(call: Call, node: fx.Node, value: Local) -> Local | None:
    dims = _dims(node, 1, len(value.layout_.shape))
    keep = _keeps(node, 2)
    rows = without_padding(call, value, 0.0)
    total = _total(call, node, value, rows.node, dims, keep)
    return Local(_narrowed(call, total.node, node), total.layout, total.rows)


def _mean(call: Call, node: fx.Node, value: Local) -> Local | None:
    layout = value.layout_
    dims = _dims(node, 1, len(layout.shape))
    total = _sum(call, node, value)
    assert total is not None
    count = 1
    for dim in dims:
        count *= layout.shape[dim]
    return Local(call(aten.div.Tensor, total.node, count), total.layout, total.rows)


def _norm(dim_at: int, keep_at: int) -> Callable[[Call, fx.Node, Local], Local | None]:
    """Euclidean norms, as the root of a sum of squares; others are left to the whole."""

    def norm(call: Call, node: fx.Node, value: Local) -> Local | None:
        order = node.args[1] if len(node.args) > 1 else 2
        if order not in (2, 2.0, None):
            return None
        dims, keep = _dims(node, dim_at, len(value.layout_.shape)), _keeps(node, keep_at)
        rows = without_padding(call, value, 0.0)
        wide = _widened(call, rows.node)
        total = _total(call, node, value, call(aten.mul.Tensor, wide, wide), dims, keep)
        root = call(aten.sqrt.default, total.node)
        return Local(_narrowed(call, root, node), total.layout, total.rows)

    return norm


def _total(call: Call, node: fx.Node, value: Local, rows: fx.Node, dims: list[int],
           keep: bool) -> Local:  # fmt: skip
    """The sum of ``rows``; what has few bits travels in fp32, as torch adds it."""
    local = call(aten.sum.dim_IntList, _widened(call, rows), dims, keep)
    return _reduced(call, node, value, local, dims, "sum", keep)


def _widened(call: Call, node: fx.Node) -> fx.Node:
    if value_of(node).dtype not in (torch.bfloat16, torch.float16):
        return node
    return call(aten._to_copy.default, node, dtype=torch.float32)


def _narrowed(call: Call, node: fx.Node, like: fx.Node) -> fx.Node:
    dtype = value_of(like).dtype
    return node if value_of(node).dtype == dtype else call(aten._to_copy.default, node, dtype=dtype)


def _extreme(op: str, neutral: float) -> Callable[[Call, fx.Node, Local], Local | None]:
    def extreme(call: Call, node: fx.Node, value: Local) -> Local | None:
        dims = _dims(node, 1, len(value.layout_.shape))
        keep = _keeps(node, 2)
        rows = without_padding(call, value, neutral)
        local = call(getattr(aten, f"a{op}").default, rows.node, dims, keep)
        return _reduced(call, node, value, local, dims, op, keep)

    return extreme


_REDUCTIONS: dict[Any, Callable[[Call, fx.Node, Local], Local | None]] = {
    aten.sum.default: _sum,
    aten.sum.dim_IntList: _sum,
    aten.mean.default: _mean,
    aten.mean.dim: _mean,
    aten.norm.Scalar: _norm(9, 9),
    aten.norm.ScalarOpt_dim: _norm(2, 3),
    aten.linalg_vector_norm.default: _norm(2, 3),
    aten.amax.default: _extreme("max", -torch.inf),
    aten.amin.default: _extreme("min", torch.inf),
    aten.max.default: _extreme("max", -torch.inf),
    aten.min.default: _extreme("min", torch.inf),
}
