"""Gradients that a loop over micro-batches adds up: where they are reduced over ranks.

before:    %w_grad = zc.grad(%mm, ...)                               (a shard)
           %w_grad_add = aten.add_.Tensor(%w_grad_sum, %w_grad)
         %micro_end = zc.micro_end(%micro)
after:     %w_grad_add = aten.add_.Tensor(%w_grad_sum, %mm)          (whole)
         %micro_end = zc.micro_end(%micro)
         %w_grad = zc.grad(%w_grad_add, ...)

A sum of averages is the average of the sums, up to rounding.
"""

from typing import Any

from torch import fx

from zc.program.edit import Editor, replace_uses
from zc.program.loops import Loop, loop_by_node
from zc.program.stamps import restamp, stamp_of


def reduce_behind_loop(edit: Editor, grads: list[fx.Node]) -> None:
    """Add up what the markers ``grads`` reduce, and reduce the sums behind the loop instead."""
    loops = loop_by_node(edit.graph)
    for grad in reversed(grads):
        if grad in loops:
            _reduce_behind(edit, grad, loops)


def _reduce_behind(edit: Editor, grad: fx.Node, loops: dict[fx.Node, Loop]) -> None:
    (added,) = grad.users
    loop, full, total = loops[grad], _operand(grad), _operand(added)
    total.args = (list(edit.program.params[stamp_of(grad).param].shape), *total.args[1:])
    added.args = (total, full)
    if loops.get(full) is loop:
        full.append(added)
    loop.end.append(grad)
    replace_uses(added, grad)
    grad.args = (added, *grad.args[1:])
    for node in (total, added, grad):
        restamp(node, made_by=edit.made_by)
        node.meta["val"] = edit.derive(node)


def _operand(node: fx.Node) -> Any:
    return node.args[0]
