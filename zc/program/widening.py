"""The same arithmetic in fp32: what stands behind a bf16 value, without rounding on the way.

%w_mul: bf16[16] = aten.mul.Tensor(%w, 0.9)           %w_wide: f32[16] = aten._to_copy(%w)
%w_add: bf16[16] = aten.add.Tensor(%w_mul, %w_grad)   %w_mul: f32[16] = aten.mul.Tensor(...)
                                                      ...
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from zc.program.edit import Editor
from zc.program.nodes import value_of
from zc.program.partition import OWN_BLOCK
from zc.program.stamps import UPDATE, stamp_of

aten: Any = torch.ops.aten
LOW = (torch.bfloat16, torch.float16)
_MADE_ALIKE = (
    aten.clone.default, aten._to_copy.default, aten.zeros_like.default, aten.ones_like.default,
    aten.full_like.default, aten.empty_like.default, aten.copy.default, aten.fill.Scalar,
)  # fmt: skip
_MOVED = (
    OWN_BLOCK, aten.view.default, aten.reshape.default, aten.slice.Tensor, aten.permute.default,
    aten.constant_pad_nd.default, aten.expand.default, aten.t.default,
)  # fmt: skip


def widen(edit: Editor, roots: Sequence[fx.Node]) -> list[fx.Node]:
    """The values of ``roots`` in fp32, computed from their leaves where ``edit`` inserts.

    Leaves are what is no arithmetic of the update, element by element: they are cast up.
    """
    wide: dict[fx.Node, fx.Node] = {}
    inside = _arithmetic(roots)
    for node in sorted(inside):
        for source in node.all_input_nodes:
            if source not in wide and source not in inside:
                wide[source] = _cast_up(edit, source)
        wide[node] = _again(edit, node, wide)
    return [wide[root] if root in wide else _cast_up(edit, root) for root in roots]


def _arithmetic(roots: Sequence[fx.Node]) -> set[fx.Node]:
    """What ``roots`` are computed from, back to the leaves."""
    inside: set[fx.Node] = set()
    pending = list(roots)
    while pending:
        node = pending.pop()
        if node not in inside and _is_arithmetic(node):
            inside.add(node)
            pending += node.all_input_nodes
    return inside


def _is_arithmetic(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload) or stamp_of(node).phase != UPDATE:
        return False
    if not isinstance(value_of(node), torch.Tensor) or node.target._schema.is_mutable:
        return False
    if node.target is aten._to_copy.default and set(node.kwargs) != {"dtype"}:
        return False
    kept = node.target in _MADE_ALIKE or node.target in _MOVED
    return kept or torch.Tag.pointwise in node.target.tags


def _again(edit: Editor, node: fx.Node, wide: dict[fx.Node, fx.Node]) -> fx.Node:
    """``node`` on wide operands; itself where it is wide already."""
    low = value_of(node).dtype in LOW
    if not low and all(wide[source] is source for source in node.all_input_nodes):
        return node
    args, kwargs = map_arg((node.args, node.kwargs), wide.__getitem__)
    if kwargs.get("dtype") in LOW:
        kwargs = {**kwargs, "dtype": torch.float32}
    if node.target is aten._to_copy.default and value_of(args[0]).dtype == kwargs["dtype"]:
        return args[0]
    return edit.call(node.target, *args, **kwargs)


def _cast_up(edit: Editor, node: fx.Node) -> fx.Node:
    value = value_of(node)
    if not isinstance(value, torch.Tensor) or value.dtype not in LOW:
        return node
    return edit.call(aten._to_copy.default, node, dtype=torch.float32)
