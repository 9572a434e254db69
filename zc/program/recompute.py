"""Computing a value again: copies of nodes, with what they need, where they are read.

before:  %gelu = aten.gelu(%mm)  ...  -- backward --  %mm_1 = aten.mm(%t, %gelu)
after:   %gelu = aten.gelu(%mm)  ...  -- backward --  %gelu_again = aten.gelu(%mm)  {recompute}
                                                      %mm_1 = aten.mm(%t, %gelu_again)
"""

from collections.abc import Container
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from zc.program.analysis import is_pure
from zc.program.edit import Editor
from zc.program.nodes import tensors_of, value_of
from zc.program.stamps import set_stamp, stamp_of

aten: Any = torch.ops.aten


def copy_chain(
    edit: Editor,
    source: fx.Node,
    before: fx.Node,
    wanted: Container[fx.Node],
    copies: dict[fx.Node, fx.Node],
    *,
    recompute: bool = False,
) -> fx.Node:
    """A copy, before ``before``, of ``source`` and of what it needs of the ``wanted`` values.

    Copies have the phase of ``before``. Those in ``copies``, by their originals, are used again;
    new ones are entered there.
    """
    pending = [source]
    while pending:
        node = pending[-1]
        missing = [s for s in node.all_input_nodes if s in wanted and s not in copies]
        if missing:
            pending.extend(missing)
            continue
        pending.pop()
        if node not in copies:
            copies[node] = _copy(edit, node, before, copies, recompute)
    return copies[source]


def _copy(
    edit: Editor,
    node: fx.Node,
    before: fx.Node,
    copies: dict[fx.Node, fx.Node],
    recompute: bool,
) -> fx.Node:
    with edit.graph.inserting_before(before):
        copy = edit.graph.node_copy(node, lambda n: copies.get(n, n))
    copy._rename(f"{node.name.removesuffix('_again')}_again")
    stamp = stamp_of(node)
    again = recompute or stamp.recompute
    phase = stamp_of(before).phase
    set_stamp(copy, replace(stamp, phase=phase, made_by=edit.made_by, recompute=again))
    copy.meta["val"] = edit.derive(copy)
    return copy


def is_cheap(node: fx.Node, *, redraw: bool = False) -> bool:
    """Whether ``node`` takes about as long as reading its operands and writing its result.

    Pointwise ops, casts, copies, constants, and layer, group and RMS norms, which read what the
    cache holds once more; with ``redraw`` random numbers from an explicit seed, which are the same
    bits again. No other reductions, no products.
    """
    if node.target in _NORMS:
        return True
    if len(tensors_of(node)) != 1 or isinstance(value_of(node), (tuple, list)):
        return False
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if node.target._schema.name in _DRAWS:
        return redraw
    moves = torch.Tag.pointwise in node.target.tags or node.target in _MOVES
    return moves and is_pure(node)


_DRAWS = ("zc::uniform", "zc::normal", "zc::randint")  # zc.capture.random_ops
_NORMS = (
    aten.native_layer_norm.default,
    aten.native_group_norm.default,
    aten._fused_rms_norm.default,
)
_MOVES = (
    *(aten._to_copy.default, aten.cat.default, aten.stack.default, aten.repeat.default),
    *(aten.constant_pad_nd.default, aten.tril.default, aten.triu.default),
    *(aten.full.default, aten.ones.default, aten.zeros.default, aten.scalar_tensor.default),
    *(aten.full_like.default, aten.ones_like.default, aten.zeros_like.default),
    *(aten.arange.default, aten.arange.start, aten.arange.start_step),
)
