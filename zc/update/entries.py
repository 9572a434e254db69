"""Entries of ``optimizer.state`` and the storage behind them: plain, padded, or in 8 bits."""

from dataclasses import replace
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate

from zc.program.layout import Layout
from zc.program.tables import Quantized
from zc.state.padding import at_rest, placed
from zc.state.quantized import QuantizedTensor


def local(entry: torch.Tensor) -> torch.Tensor:
    """What this rank has of an entry."""
    return entry.to_local() if isinstance(entry, DTensor) else entry


def pointer(entry: torch.Tensor) -> int | None:
    """Where an entry lies; ``None`` for one in 8 bits."""
    held = local(entry)
    return None if isinstance(held, QuantizedTensor) else held.data_ptr()


def whole(layout: Layout, value: torch.Tensor) -> Layout:
    """The layout of state that every rank has all of."""
    return replace(layout, shape=tuple(value.shape), dim=None)


def stored(storage: torch.Tensor, layout: Layout, param: torch.Tensor) -> torch.Tensor:
    """Storage as the optimizer keeps it: a ``DTensor`` beside a ``DTensor`` parameter."""
    if not isinstance(param, DTensor):
        return storage
    mesh: DeviceMesh = param.device_mesh
    if layout.dim is None:
        return DTensor.from_local(storage, mesh, [Replicate()], run_check=False)
    return at_rest(storage, layout, mesh)


def is_quantized(entry: Any, how: Quantized, layout: Layout) -> bool:
    """Whether an entry is kept as ``how`` says, in storage of ``layout``."""
    held = None if entry is None else local(entry)
    if not isinstance(held, QuantizedTensor):
        return False
    return held.how == how and tuple(held.codes.shape) == layout.storage_shape


def in_8_bits(
    storage: torch.Tensor, layout: Layout, how: Quantized, param: torch.Tensor, label: str
) -> torch.Tensor:
    """``storage`` quantised, as the optimizer keeps it."""
    if not isinstance(param, DTensor):
        return QuantizedTensor.of(storage, how, layout.shape, label)
    mesh: DeviceMesh = param.device_mesh
    shape = layout.shape if layout.dim is None else layout.local_shape(mesh.get_local_rank())
    return placed(QuantizedTensor.of(storage, how, shape, label), layout, mesh)
