"""State in 8 bits in a program: codes and scales in place of one entry of the state table.

    input %exp_avg_codes: u8[64, 64]  {state 'adamw.exp_avg[w].codes'}
    input %exp_avg_scales: f32[16]  {state 'adamw.exp_avg[w].scales'}
    %w_dequantize: f32[64, 64] = zc.dequantize(%exp_avg_codes, %exp_avg_scales, 256, true, f32)
    %w_quantize: none = zc.quantize_(%exp_avg_codes, %w_lerp, %exp_avg_scales, 256, true)

The arguments behind the tensors are the size of a block and whether the map has a sign
(``zc.codegen.blockwise``). ``quantize_`` writes its first and its third operand.
"""

from typing import Any

import torch
from torch import fx

from zc.codegen import blockwise
from zc.errors import ExecutionError

_library = torch.library.Library("zc", "FRAGMENT")
_library.define(
    "dequantize(Tensor codes, Tensor scales, int block, bool signed, ScalarType dtype) -> Tensor"
)
_library.define(
    "quantize_(Tensor(a!) codes, Tensor value, Tensor(b!) scales, int block, bool signed) -> ()"
)
DEQUANTIZE: Any = torch.ops.zc.dequantize.default
QUANTIZE: Any = torch.ops.zc.quantize_.default


def codes_name(entry: str) -> str:
    """Entry of the state table for the codes of what was ``entry``."""
    return f"{entry}.codes"


def scales_name(entry: str) -> str:
    """Entry of the state table for the scales of what was ``entry``."""
    return f"{entry}.scales"


def require_between(value: float, low: float, high: float, what: str) -> float:
    """``value``, a number of a step on which the sign of state in 8 bits depends.

    Raises:
        ExecutionError: when it is outside of ``low`` to ``high``; ``what`` says what depends on it.
    """
    if value < low or value > high:
        raise ExecutionError(f"{what}; it is {value:g}")
    return value


fx.node.has_side_effect(require_between)


@torch.library.register_fake("zc::dequantize")
def _dequantize_type(
    codes: torch.Tensor, scales: torch.Tensor, block: int, signed: bool, dtype: torch.dtype
) -> torch.Tensor:
    return torch.empty_like(codes, dtype=dtype)


@torch.library.register_fake("zc::quantize_")
def _quantize_type(codes: Any, value: Any, scales: Any, block: int, signed: bool) -> None:
    return None


def _dequantize(
    codes: torch.Tensor, scales: torch.Tensor, block: int, signed: bool, dtype: torch.dtype
) -> torch.Tensor:
    return blockwise.dequantize(codes, scales, block, signed).to(dtype)


def _quantize(
    codes: torch.Tensor, value: torch.Tensor, scales: torch.Tensor, block: int, signed: bool
) -> None:
    new_codes, new_scales = blockwise.quantize(value, block, signed)
    codes.copy_(new_codes)
    scales.copy_(new_scales)


_library.impl("dequantize", _dequantize, "CompositeExplicitAutograd")
_library.impl("quantize_", _quantize, "CompositeExplicitAutograd")
