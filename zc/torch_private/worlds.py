"""Process groups: their store, ranks that are not there, tensors without memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode


@contextmanager
def fake_world(world: int, rank: int = 0) -> Iterator[None]:
    """A process group of ``world`` ranks in which nothing moves, for building programs."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


def without_memory() -> FakeTensorMode:
    """A mode in which tensors have a type and a device, and nothing behind them."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def default_store() -> Any:
    """The key-value store of the default process group."""
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_store()


def group_seconds(group: dist.ProcessGroup) -> float:
    """The timeout of ``group``, in seconds."""
    return group._get_backend(torch.device("cpu")).options._timeout.total_seconds()
