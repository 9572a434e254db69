"""Pointwise ops on lists of tensors, as one op for each tensor: what clipping gradients leaves.

before:  %_foreach_mul = aten._foreach_mul.Tensor([%a, %b], %c); %x = getitem(%_foreach_mul, 0); ...
after:   %x = aten.mul.Tensor(%a, %c); %y = aten.mul.Tensor(%b, %c)

A pass can then move, fuse or drop each by itself. Results are the same bits: one list is one loop
over its tensors. Norms stay lists, since a GPU reduces a list in an order of its own.
"""

import operator
from typing import Any

import torch
from torch import fx

from zc.program.edit import Editor
from zc.program.program import Program
from zc.program.stamps import stamp_of

aten: Any = torch.ops.aten
_POINTWISE = {
    aten._foreach_mul.Tensor: aten.mul.Tensor,
    aten._foreach_mul.Scalar: aten.mul.Tensor,
    aten._foreach_mul.List: aten.mul.Tensor,
    aten._foreach_div.Tensor: aten.div.Tensor,
    aten._foreach_div.Scalar: aten.div.Tensor,
    aten._foreach_clamp_min.Scalar: aten.clamp_min.default,
    aten._foreach_clamp_max.Scalar: aten.clamp_max.default,
}


def split_lists(program: Program) -> None:
    """Replace every pointwise op on a list by ops on its tensors."""
    edit = Editor(program, program.graph, made_by="capture")
    for target, single in _POINTWISE.items():
        for node in program.graph.find_nodes(op="call_function", target=target):
            _split(edit, node, single)


def _split(edit: Editor, node: fx.Node, single: Any) -> None:
    tensors: Any = node.args[0]
    for item in list(node.users):
        if item.target is not operator.getitem:
            return
    for item in list(node.users):
        index: Any = item.args[1]
        own = [a[index] if isinstance(a, (list, tuple)) else a for a in node.args[1:]]
        stamp = stamp_of(item)
        with edit.before(node, phase=stamp.phase, module=stamp.module, source=stamp.source):
            one = edit.call(single, tensors[index], *own)
        item.replace_all_uses_with(one)
        edit.graph.erase_node(item)
    edit.graph.erase_node(node)
