"""Target ``eager``: the kernel as a Python function on torch tensors, the reference for others."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from zc.codegen.blockwise import dequantize, quantize
from zc.codegen.rounding import Place, round_stochastic
from zc.codegen.spec import Codes, KernelSpec, Operand


class Run(Protocol):
    """A loaded kernel: operands, one list of tensors for each, numbers, places of the tensors.

    Only a kernel that asks for them (``KernelSpec.placed``) needs places, one for each row.
    """

    def __call__(
        self,
        operands: Sequence[Sequence[torch.Tensor]],
        numbers: Sequence[float],
        places: Sequence[Place] = (),
        /,
    ) -> None:
        """Run it."""
        ...


def _lerp(start: Any, end: Any, weight: float) -> Any:
    near = weight < 0.5
    return start + weight * (end - start) if near else end - (end - start) * (1 - weight)


def _where(condition: Any, left: Any, right: Any) -> Any:
    return torch.where(condition, left, right)


def _extreme(tensors: Any, numbers: Any) -> Callable[[Any, Any], Any]:
    def extreme(left: Any, right: Any) -> Any:
        both = isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor)
        return tensors(left, right) if both else numbers(left, right)

    return extreme


_SCOPE: dict[str, Any] = {
    "sqrt": torch.sqrt, "rsqrt": torch.rsqrt, "exp": torch.exp, "log": torch.log,
    "log2": torch.log2, "abs": torch.abs, "sin": torch.sin, "cos": torch.cos, "tanh": torch.tanh,
    "sigmoid": torch.sigmoid, "erf": torch.erf, "floor": torch.floor, "ceil": torch.ceil,
    "pow": torch.pow, "reciprocal": torch.reciprocal, "sign": torch.sgn, "where": _where,
    "lerp": _lerp,
    "maximum": _extreme(torch.maximum, torch.clamp_min),
    "minimum": _extreme(torch.minimum, torch.clamp_max),
    "round_stochastic": round_stochastic,
}  # fmt: skip


def render_torch(spec: KernelSpec) -> str:
    """Source of a function ``element(<operands>, <numbers>)`` that returns what is stored."""
    arguments = [o.name for o in spec.values if o.reads] + [n.name for n in spec.numbers]
    arguments += ["counter"] if spec.placed else []
    lines = [f"def element({', '.join(arguments)}):"]
    lines += [f"    {s.name} = {s.text()}" for s in spec.body]
    lines.append(f"    return {', '.join(value for _, value in spec.stores)},")
    return "\n".join(lines) + "\n"


def load_torch(spec: KernelSpec) -> Run:
    """A function that runs the kernel on lists of tensors, one list for each operand."""
    scope = dict(_SCOPE)
    exec(compile(render_torch(spec), f"<zc {spec.name}>", "exec"), scope)
    wide = getattr(torch, spec.compute_dtype)
    names = [operand.name for operand in spec.operands]

    @torch.no_grad()
    def run(
        operands: Sequence[Sequence[torch.Tensor]],
        numbers: Sequence[float],
        places: Sequence[Place] = (),
    ) -> None:
        for index, row in enumerate(zip(*operands, strict=True)):
            tensors = dict(zip(names, row, strict=True))
            given = [_read(o, tensors, wide) for o in spec.values if o.reads]
            counters = [places[index].counters(row[0])] if spec.placed else []
            results = scope["element"](*given, *numbers, *counters)
            for (place, _), result in zip(spec.stores, results, strict=True):
                _write(spec.operands[names.index(place)], tensors, result)

    return run


def _read(operand: Operand, tensors: dict[str, torch.Tensor], wide: torch.dtype) -> torch.Tensor:
    value = tensors[operand.name]
    if isinstance(operand, Codes):
        value = dequantize(value, tensors[operand.scales], operand.block, operand.signed)
    return value if operand.dtype == "bool" else value.to(wide)


def _write(operand: Operand, tensors: dict[str, torch.Tensor], value: torch.Tensor) -> None:
    if not isinstance(operand, Codes):
        tensors[operand.name].copy_(value)
        return
    codes, scales = quantize(value, operand.block, operand.signed)
    tensors[operand.name].copy_(codes)
    tensors[operand.scales].copy_(scales)
