"""Which state is never negative, found from what an update writes: sums of squares, maxima.

Found by induction: state that is not negative before a step, is written from what cannot be
negative then, and so stays that way. Of the numbers of a parameter group it is expected that they
are not negative, and of ``1 - number`` (the other weight of an average) too; which of them counted
is returned, for the program to check at each step.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import fx

from zc.program.nodes import input_of, value_of
from zc.program.printer import print_target
from zc.program.program import Program
from zc.program.stamps import UPDATE, stamp_of
from zc.program.updates import is_number

Range = tuple[float, float]
Expected = dict[fx.Node, Range]  # numbers, and where each must lie
NOT_NEGATIVE = (0.0, math.inf)


def never_negative(program: Program, written: Mapping[fx.Node, fx.Node]) -> dict[fx.Node, Expected]:
    """Those of the inputs that stay at 0 or above if they begin there.

    Args:
        program: after ``shard_update``.
        written: for each input in question the value that the step writes to it.

    Returns:
        For each of these inputs what is expected of numbers.
    """
    kept = dict(written)
    while True:
        facts = _facts(program, kept)
        found = {entry: facts[value] for entry, value in kept.items() if value in facts}
        if found.keys() == kept.keys():
            return found
        kept = {entry: kept[entry] for entry in found}


def _facts(program: Program, assumed: Iterable[fx.Node]) -> dict[fx.Node, Expected]:
    """For each value of the update that is not negative, what must hold for that."""
    facts: dict[fx.Node, Expected] = {node: {} for node in assumed}
    for node in program.placeholders("state"):
        if is_number(value_of(node)) and program.state[input_of(node).subject].dtype is None:
            facts[node] = {node: NOT_NEGATIVE}
    for node in program.graph.nodes:
        if node.op == "call_function" and stamp_of(node).phase == UPDATE:
            rule = _RULES.get(print_target(node.target))
            found = rule(_Call(node, facts)) if rule else None
            if found is not None:
                facts[node] = found
    return facts


class _Call:
    """One call and what is known of its operands."""

    def __init__(self, node: fx.Node, facts: Mapping[fx.Node, Expected]) -> None:
        self.node = node
        self.args = node.args
        self._facts = facts

    def all(self, *values: Any) -> Expected | None:
        """What must hold for none of ``values`` to be negative."""
        together: Expected = {}
        for value in values:
            found = self.one(value)
            if found is None:
                return None
            together |= found
        return together

    def one(self, value: Any) -> Expected | None:
        """The same for one value, a node or a literal."""
        if isinstance(value, fx.Node):
            return self._facts.get(value)
        return {} if isinstance(value, (int, float)) and value >= 0 else None

    def any(self, *values: Any) -> Expected | None:
        """What must hold for one of ``values`` not to be negative."""
        return next((found for v in values if (found := self.one(v)) is not None), None)

    def option(self, name: str) -> Any:
        """A factor that is 1 where it is left out."""
        return self.node.kwargs.get(name, 1)


Rule = Callable[[_Call], Expected | None]


def _always(call: _Call) -> Expected | None:
    return {}


def _like_operands(call: _Call) -> Expected | None:
    return call.all(*call.args)


def _like_first(call: _Call) -> Expected | None:
    return call.one(call.args[0])


def _product(call: _Call) -> Expected | None:
    left, right = call.args
    square = left is right and isinstance(value_of(left), torch.Tensor)  # type: ignore[arg-type]
    return {} if square else call.all(left, right)


def _sum(call: _Call) -> Expected | None:
    return call.all(*call.args[:2], call.option("alpha"))


def _difference(call: _Call) -> Expected | None:
    """``1 - number``: expected not to be negative where the number is expected not to be."""
    left, right = call.args
    if isinstance(left, fx.Node) or call.all(left, right) is None:
        return None
    return {call.node: NOT_NEGATIVE}


def _with_product(call: _Call) -> Expected | None:
    base, left, right = call.args
    square = left is right
    return call.all(base, call.option("value"), *(() if square else (left, right)))


def _with_quotient(call: _Call) -> Expected | None:
    return call.all(*call.args, call.option("value"))


def _average(call: _Call) -> Expected | None:
    left, right, weight = call.args
    found = call.all(left, right)
    if found is None:
        return None
    if isinstance(weight, fx.Node):
        return found | {weight: (0.0, 1.0)} if is_number(value_of(weight)) else None
    return found if isinstance(weight, (int, float)) and 0 <= weight <= 1 else None


def _power(call: _Call) -> Expected | None:
    base, exponent = call.args
    even = isinstance(exponent, (int, float)) and exponent % 2 == 0
    return {} if even else call.one(base)


def _larger(call: _Call) -> Expected | None:
    return call.any(*call.args)


def _between(call: _Call) -> Expected | None:
    value, low, *high = call.args
    found = call.any(*(v for v in (value, low) if v is not None))
    if found is None:
        return None
    rest = call.all(*(v for v in high if v is not None))
    return None if rest is None else found | rest


def _chosen(call: _Call) -> Expected | None:
    return call.all(*call.args[1:])


def _filled(call: _Call) -> Expected | None:
    return call.one(call.args[1])


_RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("aten.sqrt", "aten.rsqrt", "aten.abs", "aten.square", "aten.exp", "aten.sigmoid", "sqrt",
         "aten.zeros", "aten.zeros_like", "aten.ones", "aten.ones_like", "abs"), _always
    ),
    **dict.fromkeys(
        ("aten.div.Tensor", "aten.minimum", "aten.clamp_max", "mul", "add", "truediv"),
        _like_operands,
    ),
    **dict.fromkeys(
        ("aten.clone", "aten._to_copy", "aten.detach", "aten.alias", "aten.reciprocal",
         "aten.scalar_tensor", "aten.view", "aten.reshape", "aten.expand", "pow"), _like_first
    ),
    **dict.fromkeys(("aten.maximum", "aten.clamp_min"), _larger),
    "aten.clamp": _between,
    "aten.mul.Tensor": _product,
    "aten.add.Tensor": _sum,
    "aten.addcmul": _with_product,
    "aten.addcdiv": _with_quotient,
    "aten.lerp.Scalar": _average,
    "aten.pow.Tensor_Scalar": _power,
    "aten.where.self": _chosen,
    "aten.full": _filled,
    "aten.full_like": _filled,
    "sub": _difference,
}  # fmt: skip
