"""Operands as keys: nodes that call one op on equal operands compute equal values."""

from collections.abc import Hashable
from typing import Any

from torch import fx


def constant(value: Any) -> Hashable:
    """An argument as a key: nodes as they are, constants by type and text (1 is not 1.0)."""
    if isinstance(value, fx.Node):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(map(constant, value))
    if isinstance(value, dict):
        return tuple((name, constant(item)) for name, item in sorted(value.items()))
    return type(value), repr(value)
