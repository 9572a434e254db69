"""Stochastic rounding in a program: an op that asks where a shard lies, and never which rank it is.

    %w_rounded = zc.round_stochastic(%w_add, %mod, 7, 0, [3, 32, 128, 32], "dp")

Operands are the value, the step number, the seed, the entry (0 for a parameter, 1 and more for its
state), the place, and the axis. The place is ``[param, inner, outer, advance]``: element i of the
value on a rank is the element ``rank * advance + i // inner * outer + i % inner`` of the whole
tensor. Binding knows the rank. What the bits are is told in ``zc.codegen.rounding``.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import fx

from zc.codegen.rounding import Place, round_stochastic, seed_word
from zc.program.layout import Layout

_library = torch.library.Library("zc", "FRAGMENT")
_library.define(
    "round_stochastic(Tensor value, float step, int seed, int entry, int[] place, str axis)"
    " -> Tensor"
)
ROUND_STOCHASTIC: Any = torch.ops.zc.round_stochastic.default


@torch.library.register_fake("zc::round_stochastic")
def _type(
    value: torch.Tensor, step: float, seed: int, entry: int, place: Any, axis: str
) -> torch.Tensor:
    return torch.empty(value.shape, dtype=torch.bfloat16, device=value.device)


def round_on(
    rank: int, value: torch.Tensor, step: float, seed: int, entry: int, place: Sequence[int]
) -> torch.Tensor:
    """The op on ``rank`` of its axis."""
    counter = place_on(rank, place).counters(value)
    rounded = round_stochastic(value, step, counter, seed_word(seed), entry)
    return rounded.to(torch.bfloat16, memory_format=torch.contiguous_format)


def place_on(rank: int, place: Sequence[int]) -> Place:
    """Where the value of ``rank`` lies."""
    param, inner, outer, advance = place
    return Place(param, inner, outer, rank * advance)


def places_on(rank: int, places: Sequence[int]) -> list[Place]:
    """Those of several values, one behind the other in ``places``."""
    return [place_on(rank, places[i : i + 4]) for i in range(0, len(places), 4)]


def place_of(param: int, layout: Layout) -> list[int]:
    """The place of what is stored in ``layout``; what padding gets is of no matter."""
    if layout.dim is None:
        whole = max(1, prod(layout.shape))
        return [param, whole, whole, 0]
    inner = max(1, prod(layout.block_shape[layout.dim :]))
    return [param, inner, prod(layout.shape[layout.dim :]), inner]


def kernel_arguments(node: fx.Node) -> tuple[str, str]:
    """Seed and entry of ``node`` as a kernel takes them: as integers, where numbers are real."""
    seed, entry = node.args[2:4]
    return hex(seed_word(int(seed))), hex(int(entry))  # type: ignore[arg-type]
