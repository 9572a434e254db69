"""Numbers of an optimizer that change between steps, while its step is being traced.

A learning rate, a beta, a step count: in the optimizer's own Python code they are ``Number``
objects. Arithmetic on them is recorded; torch takes them wherever it takes a float. A branch on one
that the host knows before the step (``if rho_t > 5``) is taken as it would be now and becomes a
condition of the trace; a branch on one that depends on data (``max(1.0, update.norm().item())``) is
traced both ways.
"""

import math
import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import fx


class NumberRecorder(Protocol):
    """What keeps the arithmetic of numbers; see ``zc.update.recorder``."""

    def number(self, target: Callable[..., Any], *operands: Any) -> Any:
        """Record ``target(*operands)`` and return the resulting number or condition."""

    def decide(self, node: fx.Node, where: str) -> bool:
        """Which way a branch on ``node`` goes."""

    def pin(self, node: fx.Node, where: str) -> Any:
        """The present value of ``node``, which becomes a condition of the trace."""


class _SymNode:
    """What torch's argument parser asks of a symbolic float; anything else is refused."""

    def __init__(self, number: "Number") -> None:
        self.number = number

    def is_symbolic(self) -> bool:
        return True

    def is_constant(self) -> bool:
        return False

    def is_float(self) -> bool:
        return True

    def is_int(self) -> bool:
        return False

    def is_bool(self) -> bool:
        return False

    def is_nested_int(self) -> bool:
        return False

    def nested_int(self) -> None:
        return None

    def constant_float(self) -> None:
        return None

    maybe_as_float = maybe_as_int = constant_int = constant_bool = constant_float

    def guard_float(self, file: str, line: int) -> float:
        return float(self.number)


class Number(torch.SymFloat):
    """A number that is recorded; ``origin`` is the node that computes it."""

    def __init__(self, recorder: NumberRecorder, origin: fx.Node) -> None:
        super().__init__(_SymNode(self))
        self.recorder = recorder
        self.origin = origin

    def __float__(self) -> float:
        return float(self.recorder.pin(self.origin, user_line()))

    def __int__(self) -> int:
        return int(self.recorder.pin(self.origin, user_line()))

    __index__ = __trunc__ = __int__

    def __bool__(self) -> bool:
        return bool(self != 0)

    def __repr__(self) -> str:
        return f"Number({self.origin.name})"

    __str__ = __repr__

    def __hash__(self) -> int:
        return id(self)


class Condition:
    """A comparison of numbers; ``bool()`` of it is a branch."""

    def __init__(self, recorder: NumberRecorder, origin: fx.Node) -> None:
        self.recorder = recorder
        self.origin = origin

    def __bool__(self) -> bool:
        return self.recorder.decide(self.origin, user_line())


def _binary(target: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def forward(self: Number, other: Any) -> Any:
        if isinstance(other, torch.Tensor):
            return NotImplemented
        return self.recorder.number(target, self, other)

    def backward(self: Number, other: Any) -> Any:
        if isinstance(other, torch.Tensor):
            return NotImplemented
        return self.recorder.number(target, other, self)

    return forward, backward


def _unary(target: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self: self.recorder.number(target, self)


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    _forward, _backward = _binary(getattr(operator, _name))
    setattr(Number, f"__{_name}__", _forward)
    setattr(Number, f"__r{_name}__", _backward)
for _name in ("lt", "gt", "le", "ge", "eq", "ne"):
    setattr(Number, f"__{_name}__", _binary(getattr(operator, _name))[0])
for _name in ("neg", "pos", "abs"):
    setattr(Number, f"__{_name}__", _unary(getattr(operator, _name)))

_FUNCTIONS = ("sqrt", "pow", "exp", "log", "log2", "log10", "cos", "sin", "tanh", "floor", "ceil")


@contextmanager
def recorded_math() -> Iterator[None]:
    """Let ``math.sqrt`` and its like take numbers meanwhile; all else they treat as before.

    Code that imported a function by name (``from math import sqrt``) pins the number instead.
    """
    kept = {name: getattr(math, name) for name in _FUNCTIONS}
    try:
        for name, function in kept.items():
            setattr(math, name, _recorded(function))
        yield
    finally:
        for name, function in kept.items():
            setattr(math, name, function)


def _recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        recorder = next((a.recorder for a in args if isinstance(a, Number)), None)
        return function(*args) if recorder is None else recorder.number(function, *args)

    return call


def user_line() -> str:
    """``file:line`` of the innermost frame outside zc: where the optimizer's code uses a number."""
    here = __file__.rpartition("number.py")[0]
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(here):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
