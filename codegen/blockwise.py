"""Tensors in 8 bits, block by block (Dettmers et al., arXiv:2110.02861, section 2.1).

    value [n]  ->  codes u8[n], scales f32[ceil(n / block)]

A block of elements has one scale, its element of largest magnitude; each element is kept as the
code of the number that is nearest to its quotient by the scale (``zc.codegen.dynamic_map``), and is
off by at most ``max_error`` of the largest magnitude. Unlike in the paper the scale has the sign of
its element, which so becomes exactly 1: quantising again what was dequantised changes nothing.

A block whose largest magnitude is below the smallest normal number of fp32 becomes zeros; a block
with an element that is not finite is not finite as a whole.
"""

from functools import cache

import torch
from zc.codegen.dynamic_map import MIDDLE, numbers, thresholds

SMALLEST = torch.finfo(torch.float32).tiny  # magnitude of a scale that is no zero
BLOCKS = (32, 64, 128, 256, 512, 1024)  # sizes that divide what every target takes at once


def block_count(numel: int, block: int) -> int:
    """Scales of a tensor of ``numel`` elements."""
    return -(-numel // block)


def quantize(value: torch.Tensor, block: int, signed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of the shape of ``value`` and scales, ``[ceil(numel / block)]``."""
    rows = _rows(value.detach().float(), block)
    scales = _scales(rows)
    inverse = torch.where(scales.abs() >= SMALLEST, scales.reciprocal(), 0.0)
    quotient = rows * inverse[:, None]
    place = torch.bucketize(quotient.abs(), _thresholds(signed, value.device), right=True)
    if signed:
        place = MIDDLE + torch.where(quotient < 0, -place.clamp(max=MIDDLE), place)
    codes = place.to(torch.uint8).flatten()[: value.numel()]
    return codes.view(value.shape), scales


def dequantize(codes: torch.Tensor, scales: torch.Tensor, block: int, signed: bool) -> torch.Tensor:
    """The numbers that ``codes`` stand for, in fp32 and of their shape."""
    rows = _rows(_numbers(signed, codes.device)[codes.int()], block) * scales[:, None]
    return rows.flatten()[: codes.numel()].view(codes.shape)


def _rows(value: torch.Tensor, block: int) -> torch.Tensor:
    """``value`` as ``[blocks, block]``, zeros behind it."""
    flat = value.reshape(-1)
    missing = block_count(flat.numel(), block) * block - flat.numel()
    return torch.nn.functional.pad(flat, (0, missing)).view(-1, block)


def _scales(rows: torch.Tensor) -> torch.Tensor:
    """The element of largest magnitude of each row; of two that differ in sign, the positive."""
    high, low = rows.amax(1), rows.amin(1)
    return torch.where(high >= -low, high, low)


@cache
def _numbers(signed: bool, device: torch.device) -> torch.Tensor:
    return torch.tensor(numbers(signed), device=device)


@cache
def _thresholds(signed: bool, device: torch.device) -> torch.Tensor:
    return torch.tensor(thresholds(signed), device=device)
