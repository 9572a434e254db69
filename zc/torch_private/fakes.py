"""Fake tensors, and ops as types see them."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode


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


def is_composite(op: str) -> bool:
    """Whether ``op``, as ``aten::square_``, consists of other ops and has no kernel of its own."""
    try:
        return torch._C._dispatch_has_kernel_for_dispatch_key(op, "CompositeImplicitAutograd")
    except RuntimeError:  # no such op
        return False
