"""Random numbers as functions of a seed and an offset: computed again, they are the same.

    zc::uniform(seed, offset, size)   f32-exact uniform numbers of [0, 1)
    zc::normal(seed, offset, size)    standard normal numbers
    zc::randint(seed, offset, low, high, size)
    zc::micro_seed(seed, turn)        the seed of one micro-batch

``seed`` is program state, drawn anew for every call from torch's default generator (so
``torch.manual_seed`` decides it); ``offset`` numbers the random nodes of a program. In a loop over
micro-batches each turn has a seed of its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

_KIND = "ScalarType dtype, Device device"
_library = torch.library.Library("zc", "FRAGMENT")
_library.define(f"uniform(Tensor seed, int offset, SymInt[] size, {_KIND}) -> Tensor")
_library.define(f"normal(Tensor seed, int offset, SymInt[] size, {_KIND}) -> Tensor")
_library.define(
    f"randint(Tensor seed, int offset, SymInt low, SymInt high, SymInt[] size, {_KIND}) -> Tensor"
)
_library.define("micro_seed(Tensor seed, int turn) -> Tensor")
UNIFORM: Any = torch.ops.zc.uniform.default
NORMAL: Any = torch.ops.zc.normal.default
RANDINT: Any = torch.ops.zc.randint.default
MICRO_SEED: Any = torch.ops.zc.micro_seed.default
_ODD = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: spreads successive offsets (Knuth, TAOCP 3, 6.4)
_SPREAD = 6364136223846793005  # multiplier of MMIX (Knuth, TAOCP 2, 3.3.4): seeds, not offsets


Key = tuple[int, int]  # a seed and an offset
Generators = dict[Key, list[torch.Generator]]
DRAWS = (UNIFORM, NORMAL, RANDINT)
_given: ContextVar[Generators | None] = ContextVar("_given", default=None)


def generator_for(seed: torch.Tensor, offset: int, device: torch.device) -> torch.Generator:
    """A generator whose stream depends on ``seed`` and ``offset`` alone."""
    given = _given.get()
    if given is not None:
        return given[int(seed), offset].pop()
    generator = torch.Generator(device=device)
    generator.manual_seed(stream_seed(int(seed), offset))
    return generator


def stream_seed(seed: int, offset: int) -> int:
    """What the generator of one random node is seeded with."""
    return (seed + (offset + 1) * _ODD) % 2**63


def turn_seed(seed: int, turn: int) -> int:
    """The seed of one micro-batch."""
    return (seed * _SPREAD + (turn + 1) * _ODD) % 2**63


@contextmanager
def drawing_from(generators: Generators) -> Iterator[None]:
    """Random nodes take their generators from ``generators`` and leave their seeds alone.

    There is one for each draw, under its seed and offset.
    """
    token = _given.set({key: list(found) for key, found in generators.items()})
    try:
        yield
    finally:
        _given.reset(token)


@torch.library.register_fake("zc::uniform")
def _uniform_type(seed: Any, offset: int, size: Any, dtype: Any, device: Any) -> torch.Tensor:
    return seed.new_empty(size, dtype=dtype, device=device)


@torch.library.register_fake("zc::normal")
def _normal_type(seed: Any, offset: int, size: Any, dtype: Any, device: Any) -> torch.Tensor:
    return seed.new_empty(size, dtype=dtype, device=device)


@torch.library.register_fake("zc::randint")
def _randint_type(
    seed: Any, offset: int, low: int, high: int, size: Any, dtype: Any, device: Any
) -> torch.Tensor:
    return seed.new_empty(size, dtype=dtype, device=device)


@torch.library.register_fake("zc::micro_seed")
def _micro_seed_type(seed: torch.Tensor, turn: int) -> torch.Tensor:
    return torch.empty_like(seed)


def _micro_seed(seed: torch.Tensor, turn: int) -> torch.Tensor:
    return torch.full_like(seed, turn_seed(int(seed), turn))


def _uniform(seed: Any, offset: int, size: Any, dtype: Any, device: Any) -> torch.Tensor:
    generator = generator_for(seed, offset, device)
    return torch.rand(size, dtype=dtype, device=device, generator=generator)


def _normal(seed: Any, offset: int, size: Any, dtype: Any, device: Any) -> torch.Tensor:
    generator = generator_for(seed, offset, device)
    return torch.randn(size, dtype=dtype, device=device, generator=generator)


def _randint(
    seed: Any, offset: int, low: int, high: int, size: Any, dtype: Any, device: Any
) -> torch.Tensor:
    generator = generator_for(seed, offset, device)
    return torch.randint(low, high, size, dtype=dtype, device=device, generator=generator)


_library.impl("micro_seed", _micro_seed, "CompositeExplicitAutograd")
_library.impl("uniform", _uniform, "CompositeExplicitAutograd")
_library.impl("normal", _normal, "CompositeExplicitAutograd")
_library.impl("randint", _randint, "CompositeExplicitAutograd")
