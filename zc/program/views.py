"""Views: tensors that lie in the storage of the tensor which they were made from."""

import operator
from typing import Any

import torch
from torch import fx

from zc.program.analysis import is_pure
from zc.program.nodes import tensors_of, value_of
from zc.program.types import same_type
from zc.program.updates import is_number


def viewed_by(node: fx.Node) -> fx.Node | None:
    """What ``node`` is a view of, through an item of several views too; ``None`` for others.

    An offset that the host computes (the part of a batch that is a micro-batch) makes another view
    at each turn, which types do not tell: such a node is none.
    """
    if node.target is operator.getitem:
        several: Any = node.args[0]
        return viewed_by(several) if len(tensors_of(node)) == 1 else None
    source = node.args[0] if node.op == "call_function" and node.args else None
    if not isinstance(source, fx.Node) or len(tensors_of(source)) != 1 or not is_pure(node):
        return None
    if any(is_number(value_of(operand)) for operand in node.all_input_nodes):
        return None
    (storage,) = (_storage(tensor) for tensor in tensors_of(source))
    inside = {_storage(tensor) for tensor in tensors_of(node)} == {storage}
    return source if inside else None


def same_view(left: fx.Node, right: fx.Node) -> bool:
    """Whether two tensors are the same bytes, read the same way."""
    one, other = value_of(left), value_of(right)
    if not same_type(one, other) or _storage(one) != _storage(other):
        return False
    alike = one.is_conj() == other.is_conj() and one.is_neg() == other.is_neg()
    return alike and str(one.storage_offset()) == str(other.storage_offset())


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
