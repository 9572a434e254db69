"""From operation to text: infix is the same in C++, Triton and Python; functions are named alike.

``{0}`` and ``{1}`` are operands, ``{value}`` and ``{alpha}`` factors that are left out where they
are 1. Each target defines the functions: ``sqrt``, ``where``, ``maximum`` and their like.
"""

from dataclasses import dataclass

FUNCTIONS = (
    "sqrt", "rsqrt", "exp", "log", "log2", "abs", "sin", "cos", "tanh", "sigmoid", "erf", "floor",
    "ceil", "pow", "reciprocal", "maximum", "minimum", "sign", "where", "lerp",
)  # fmt: skip


@dataclass(frozen=True)
class Operation:
    """Text of one op. ``names`` are its arguments in order, as the text calls them.

    ``defaults`` are for arguments that a call leaves out; a factor that is 1 is not written.
    """

    text: str
    names: tuple[str, ...] = ("0", "1", "2")
    defaults: tuple[tuple[str, float], ...] = ()

    def render(self, arguments: dict[str, str]) -> str:
        """The expression, given the text of each argument by name."""
        text = self.text
        values = {name: repr(value) for name, value in self.defaults} | arguments
        for factor in ("alpha", "value"):
            if values.get(factor) in ("1", "1.0"):
                text = text.replace(f"{{{factor}}} * ", "")
        for name, value in values.items():
            text = text.replace(f"{{{name}}}", value)
        return text


def _binary(text: str) -> Operation:
    return Operation(text, ("0", "1"))


def _call(name: str, count: int = 1) -> Operation:
    operands = ", ".join(f"{{{i}}}" for i in range(count))
    return Operation(f"{name}({operands})", tuple(str(i) for i in range(count)))


_WITH_ALPHA = (("alpha", 1),)
_WITH_VALUE = (("value", 1),)
_ALPHA = ("0", "1", "alpha")
_VALUE = ("0", "1", "2", "value")

TABLE: dict[str, Operation] = {
    "aten.add.Tensor": Operation("{0} + {alpha} * {1}", _ALPHA, _WITH_ALPHA),
    "aten.sub.Tensor": Operation("{0} - {alpha} * {1}", _ALPHA, _WITH_ALPHA),
    "aten.rsub.Scalar": Operation("{1} - {alpha} * {0}", _ALPHA, _WITH_ALPHA),
    "aten.mul.Tensor": _binary("{0} * {1}"),
    "aten.div.Tensor": _binary("{0} / {1}"),
    "aten.neg": Operation("-{0}", ("0",)),
    "aten.reciprocal": _call("reciprocal"),
    "aten.addcmul": Operation("{0} + {value} * {1} * {2}", _VALUE, _WITH_VALUE),
    "aten.addcdiv": Operation("{0} + {value} * ({1} / {2})", _VALUE, _WITH_VALUE),
    "aten.lerp.Scalar": _call("lerp", 3),
    "aten.square": Operation("{0} * {0}", ("0",)),
    "aten.pow.Tensor_Scalar": _call("pow", 2),
    "aten.pow.Tensor_Tensor": _call("pow", 2),
    "aten.clamp_min": _call("maximum", 2),
    "aten.clamp_max": _call("minimum", 2),
    "aten.clamp": Operation("minimum(maximum({0}, {1}), {2})"),
    "aten.where.self": _call("where", 3),
    "aten.gt.Scalar": _binary("{0} > {1}"),
    "aten.gt.Tensor": _binary("{0} > {1}"),
    "aten.ge.Scalar": _binary("{0} >= {1}"),
    "aten.ge.Tensor": _binary("{0} >= {1}"),
    "aten.lt.Scalar": _binary("{0} < {1}"),
    "aten.lt.Tensor": _binary("{0} < {1}"),
    "aten.le.Scalar": _binary("{0} <= {1}"),
    "aten.le.Tensor": _binary("{0} <= {1}"),
    "aten.eq.Scalar": _binary("{0} == {1}"),
    "aten.ne.Scalar": _binary("{0} != {1}"),
    "aten.maximum": _call("maximum", 2),
    "aten.minimum": _call("minimum", 2),
    "aten.clone": Operation("{0}", ("0",)),
    "aten._to_copy": Operation("{0}", ("0",)),  # to a dtype that holds every value
    "aten.sgn": _call("sign"),
    "zc.round_stochastic": Operation("round_stochastic({0}, {1}, counter, {2}, {3})",
                                     ("0", "1", "2", "3")),
} | {
    f"aten.{name}": _call(name)
    for name in ("sqrt", "rsqrt", "exp", "log", "log2", "abs", "sin", "cos", "tanh", "sigmoid",
                 "erf", "floor", "ceil", "sign")
}  # fmt: skip
