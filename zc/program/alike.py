"""Nodes that are alike: the same op, with operands and results of the same types, aliasing alike.

    %mm: f32[4, 8] = aten.mm(%x, %w0)           %mm_1: f32[4, 8] = aten.mm(%mm, %w1)

What an op returns follows from its arguments and the types of its operands. So where the type of
one node was found right, by running its op, it is right for all nodes that are alike: a model with
many equal layers is checked in the time that one of them takes.
"""

from collections.abc import Hashable
from typing import Any

import torch
from torch import fx

from zc.program.nodes import tensors_of, value_of
from zc.program.storages import storages_of
from zc.program.types import is_static
from zc.program.updates import is_number

_PLAIN = frozenset((
    int, float, bool, str, type(None),
    torch.dtype, torch.device, torch.layout, torch.memory_format,
))  # fmt: skip


class _Unlike(Exception):
    """Nothing follows from other nodes: a size is a symbol, an argument of an unknown kind."""


class Alike:
    """Descriptions of nodes, equal for those that are alike; tensors are described once each."""

    def __init__(self) -> None:
        self._types: dict[Any, int] = {}
        self._described: dict[fx.Node, tuple[Any, Hashable]] = {}

    def key(self, node: fx.Node) -> Hashable | None:
        """What ``node`` has in common with nodes that are alike; ``None`` where it is like none."""
        if not isinstance(node.target, torch._ops.OpOverload):
            return None
        try:
            arguments = self._argument(node.args), self._argument(node.kwargs)
            return node.target, arguments, self._value(node), _aliases(node)
        except _Unlike:
            return None

    def _argument(self, value: Any) -> Hashable:
        if isinstance(value, fx.Node):
            return self._value(value)
        if type(value) in _PLAIN:
            return type(value), value
        if isinstance(value, (list, tuple)):
            return tuple(map(self._argument, value))
        if isinstance(value, dict):
            return tuple((name, self._argument(item)) for name, item in value.items())
        raise _Unlike

    def _value(self, node: fx.Node) -> Hashable:
        value = value_of(node)
        known = self._described.get(node)
        if known is None or known[0] is not value:
            known = self._described[node] = value, self._type(value)
        return known[1]

    def _type(self, value: Any) -> Hashable:
        if isinstance(value, torch.Tensor):
            return self._types.setdefault(_described(value), len(self._types))
        if isinstance(value, (list, tuple)):
            return "several", *map(self._type, value)
        if value is None or is_number(value):
            return type(value), repr(value)
        raise _Unlike


def _aliases(node: fx.Node) -> Hashable:
    """Which operands share storage, and which of them the result lies in; -1 for none."""
    numbers: dict[int, int] = {}
    sources = node.all_input_nodes
    operands = [numbers.setdefault(k, len(numbers)) for s in sources for k in _storages(s)]
    return (*operands, *(numbers.get(key, -1) for key in _storages(node)))


def _storages(node: fx.Node) -> list[int]:
    """The storages of the value of ``node``, one for each of its tensors."""
    keys = list(storages_of(node))
    if len(keys) > 1 and len(keys) != len(tensors_of(node)):
        raise _Unlike
    return keys


def _described(tensor: torch.Tensor) -> Hashable:
    if tensor.layout is not torch.strided or not is_static(tensor):
        raise _Unlike
    where = tensor.storage_offset(), tensor.untyped_storage().nbytes()
    if not all(isinstance(number, int) for number in where):
        raise _Unlike  # a view of fixed size of something that has none
    flags = tensor.requires_grad, tensor.is_conj(), tensor.is_neg()
    return type(tensor), tensor.shape, tensor.stride(), where, tensor.dtype, tensor.device, flags
