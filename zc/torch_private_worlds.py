"""Private torch API, continued from ``zc.torch_private``: ranks and memory that are not there.

Each function has a test in ``tests/test_torch_private_worlds.py``.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore


@contextmanager
def fake_world(world: int) -> Iterator[None]:
    """A process group of ``world`` ranks in which nothing moves, for building programs."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


def without_memory() -> FakeTensorMode:
    """A mode in which tensors have a type and a device, and nothing behind them."""
    return FakeTensorMode(allow_non_fake_inputs=True)
