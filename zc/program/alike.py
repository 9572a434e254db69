"""Nodes that are alike: the same op, with operands and results of the same types, aliasing alike.

    %mm: f32[4, 8] = aten.mm(%x, %w0)           %mm_1: f32[4, 8] = aten.mm(%mm, %w1)

What an op returns follows from its arguments and the types of its operands. So where the type of
one node was found right, by running its op, it is right for all nodes that are alike: a model with
many equal layers is checked in the time that one of them takes.
"""

from collections.abc import Collection, Hashable
from functools import cache
from typing import Any

import torch
from torch import fx

from zc import torch_private
from zc.program.nodes import tensors_of, value_of
from zc.program.storages import storages_of
from zc.program.types import is_static
from zc.program.updates import is_number

_PLAIN = frozenset((
    int, float, bool, str, type(None),
    torch.dtype, torch.device, torch.layout, torch.memory_format,
))  # fmt: skip


class Unlike(Exception):
    """Nothing follows from other nodes: a size is a symbol, an argument of an unknown kind."""


class Alike:
    """Descriptions of nodes, equal for those that are alike; tensors are described once each.

    Descriptions by several of them compare where they share ``types``, which numbers what tensors
    were described as.
    """

    def __init__(self, types: dict[Any, int] | None = None) -> None:
        self._types: dict[Any, int] = {} if types is None else types
        self._described: dict[fx.Node, tuple[Any, Hashable]] = {}

    def key(self, node: fx.Node) -> Hashable | None:
        """What ``node`` has in common with nodes that are alike; ``None`` where it is like none."""
        try:
            return self._call(node), self._value(node), self._aliases(node)
        except Unlike:
            return None

    def call(self, node: fx.Node) -> Hashable | None:
        """The same without the result of ``node``: what the result follows from."""
        try:
            return self._call(node), tuple(self._numbered(node)[1])
        except Unlike:
            return None

    def _call(self, node: fx.Node) -> Hashable:
        if not isinstance(node.target, torch._ops.OpOverload):
            raise Unlike
        args = node.args[: _told_apart_by(node.target)]
        return node.target, self._argument(args), self._argument(node.kwargs)

    def _argument(self, value: Any) -> Hashable:
        if isinstance(value, fx.Node):
            return self._value(value)
        if type(value) in _PLAIN:
            return type(value), value
        if isinstance(value, (list, tuple)):
            return tuple(map(self._argument, value))
        if isinstance(value, dict):
            return tuple((name, self._argument(item)) for name, item in value.items())
        raise Unlike

    def _value(self, node: fx.Node) -> Hashable:
        value = value_of(node)
        known = self._described.get(node)
        if known is None or known[0] is not value:
            known = self._described[node] = value, self._type(value)
        return known[1]

    def _type(self, value: Any) -> Hashable:
        if isinstance(value, torch.Tensor):
            return self._types.setdefault(described(value), len(self._types))
        if isinstance(value, (list, tuple)):
            return "several", *map(self._type, value)
        if value is None or is_number(value):
            return type(value), repr(value)
        raise Unlike

    def _aliases(self, node: fx.Node) -> Hashable:
        """Which operands share storage, and which of them the result lies in; -1 for none."""
        numbers, operands = self._numbered(node)
        return (*operands, *[numbers.get(key, -1) for key in self._storages(node)])

    def _numbered(self, node: fx.Node) -> tuple[dict[int, int], list[int]]:
        """The storages of the operands of ``node`` by number, and the numbers, one a tensor."""
        numbers: dict[int, int] = {}
        operands: list[int] = []
        for source in node.all_input_nodes:
            for key in self._storages(source):
                operands.append(numbers.setdefault(key, len(numbers)))
        return numbers, operands

    def _storages(self, node: fx.Node) -> Collection[int]:
        """The storages of the value of ``node``, one for each of its tensors."""
        keys = storages_of(node)
        if len(keys) > 1 and len(keys) != len(tensors_of(node)):
            raise Unlike
        return keys


@cache
def _told_apart_by(target: torch._ops.OpOverload) -> int | None:
    """Which argument of ``target`` is a ``tag``: it only tells calls of our markers apart."""
    if target.namespace != "zc":
        return None
    names = [argument.name for argument in target._schema.arguments]
    return names.index("tag") if names[-1:] == ["tag"] else None


def described(tensor: torch.Tensor) -> tuple[Any, ...]:
    """All that an op sees of the type of ``tensor``.

    Raises:
        Unlike: where sizes are symbols, or torch knows values besides the type.
    """
    if tensor.layout is not torch.strided or not is_static(tensor):
        raise Unlike
    if torch_private.known_value(tensor) is not None:
        raise Unlike
    where = tensor.storage_offset(), tensor.untyped_storage().nbytes()
    if not all(isinstance(number, int) for number in where):
        raise Unlike  # a view of fixed size of something that has none
    flags = tensor.requires_grad, tensor.is_conj(), tensor.is_neg()
    return type(tensor), tensor.shape, tensor.stride(), where, tensor.dtype, tensor.device, flags
