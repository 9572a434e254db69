"""Small tables that a launch reads from device memory: addresses of tensors, and numbers.

A CUDA graph that is being recorded takes no copies from the host. ``filled_behind`` lets tables
wait for it: launches are recorded with tables that are filled when the recording is through.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch

Waiting = list[tuple[torch.Tensor, torch.Tensor]]
_waiting: ContextVar[Waiting | None] = ContextVar("_waiting", default=None)


def table_of(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """``values`` on ``device``, without waiting for what the device is at."""
    if device.type == "cpu":
        return _later(torch.tensor(values, dtype=dtype))
    pinned = torch.tensor(values, dtype=dtype, pin_memory=_waiting.get() is None)
    return _later(pinned, device)


def _later(values: torch.Tensor, device: torch.device | None = None) -> torch.Tensor:
    waiting = _waiting.get()
    if waiting is None:
        return values if device is None else values.to(device, non_blocking=True)
    table = torch.empty_like(values, device=device)
    waiting.append((table, values))
    return table


@contextmanager
def filled_behind() -> Iterator[Waiting]:
    """Tables made in this context are filled at its end; what it gives has to be kept for them."""
    waiting: Waiting = []
    token = _waiting.set(waiting)
    try:
        yield waiting
    finally:
        _waiting.reset(token)
    for table, values in waiting:
        table.copy_(values)
