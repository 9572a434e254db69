"""The arithmetic behind a number, as a person would write it: ``-(lr / (1 - betas[0]))``."""

import re
from typing import Any

import torch
from torch import fx

from zc.program.nodes import input_of

_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%", "pow": "**",
    "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=",
}  # fmt: skip
_SUFFIX = re.compile(r"\[(group|set) \d+\]$")
_SILENT = (
    torch.ops.aten._local_scalar_dense.default, torch.ops.aten.select.int,
    torch.ops.aten.scalar_tensor.default,
)  # fmt: skip


def number_text(node: Any) -> str:
    """``node`` as an expression of what the program takes in."""
    return _strip(_text(node))


def _text(value: Any) -> str:
    if not isinstance(value, fx.Node):
        return repr(value)
    if value.op == "placeholder":
        return _input_text(input_of(value).subject)
    if value.target in _SILENT:
        return _text(value.args[0])
    name = getattr(value.target, "__name__", str(value.target)).split(".")[0]
    operands = [_text(a) for a in value.args]
    if name in _INFIX and len(operands) == 2:
        return f"({operands[0]} {_INFIX[name]} {operands[1]})"
    if name == "neg":
        return f"-{operands[0]}"
    return f"{name}({', '.join(_strip(o) for o in operands)})"


def _input_text(subject: str) -> str:
    """``betas[0]`` from ``adamw.betas[0][group 0]``, ``step`` from ``adamw.step[set 0]``."""
    return _SUFFIX.sub("", subject.partition(".")[2]) or subject


def _strip(text: str) -> str:
    whole = text.startswith("(") and text.endswith(")") and text.count("(") == 1
    return text[1:-1] if whole else text
