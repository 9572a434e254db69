"""Fake tensors, and ops as types see them."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    in_kernel_invocation_manager,
)


def fake_mode_of(values: Sequence[Any]) -> FakeTensorMode:
    """The fake mode of the first fake tensor among ``values``; a new one if there is none."""
    for value in values:
        if isinstance(value, FakeTensor):
            return value.fake_mode
    return FakeTensorMode()


@contextmanager
def without_fake_tensor_logs() -> Iterator[None]:
    """Keep torch from logging a traceback for what becomes an error of ours."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def is_fake(value: Any) -> bool:
    """Whether ``value`` is a fake tensor."""
    return isinstance(value, FakeTensor)


def known_value(value: Any) -> Any:
    """The tensor that torch remembers the value of fake tensor ``value`` by; mostly ``None``."""
    return getattr(value, "constant", None)


def fake_strided(
    mode: FakeTensorMode,
    size: Sequence[int],
    stride: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    within: tuple[torch.Tensor, int] | None = None,
) -> torch.Tensor:
    """A fake tensor as an op would return it, without running one.

    It has a storage of its own, or lies in that of another fake tensor at an offset: ``within``.
    """
    with in_kernel_invocation_manager(mode):
        shadow = torch.empty_strided(size, stride, dtype=dtype, device="meta")
        if within is not None:
            owner, offset = within
            shadow.set_(owner.untyped_storage(), offset, size, stride)  # type: ignore[call-overload]
    return FakeTensor(mode, shadow, device)


def fake_empty(
    mode: FakeTensorMode, size: Sequence[int], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """What ``torch.empty`` returns under ``mode``, without running it."""
    strides = [1]
    for length in reversed(size[1:]):
        strides.append(strides[-1] * max(length, 1))
    return fake_strided(mode, size, strides[::-1][: len(size)], dtype, device)


def has_symbols(tensor: torch.Tensor) -> bool:
    """Whether a size, a stride or the offset of ``tensor`` is a symbol."""
    return tensor._has_symbolic_sizes_strides


def is_composite(op: str) -> bool:
    """Whether ``op``, as ``aten::square_``, consists of other ops and has no kernel of its own."""
    try:
        return torch._C._dispatch_has_kernel_for_dispatch_key(op, "CompositeImplicitAutograd")
    except RuntimeError:  # no such op
        return False
