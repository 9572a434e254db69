"""Groups and tensors that are not there; each test names the versions it was tried on."""

from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from zc import torch_private


def test_a_fake_world_has_its_size_and_ends():
    """Tried on 2.13."""
    with torch_private.fake_world(1024, rank=1000):
        assert (dist.get_world_size(), dist.get_rank()) == (1024, 1000)
        dist.all_reduce(torch.ones(2))
    assert not dist.is_initialized()


def test_a_group_has_a_timeout(tmp_path: Path):
    """Tried on 2.13."""
    where, after = f"file://{tmp_path}/store", timedelta(seconds=77)
    dist.init_process_group("gloo", init_method=where, rank=0, world_size=1, timeout=after)
    try:
        assert dist.group.WORLD is not None
        assert torch_private.group_seconds(dist.group.WORLD) == 77
    finally:
        dist.destroy_process_group()


def test_tensors_without_memory_have_types():
    """Tried on 2.13."""
    real = torch.ones(3)
    with torch_private.without_memory():
        huge = torch.zeros(1 << 40)
        assert (huge[:3] + real).shape == (3,)
    assert huge.numel() == 1 << 40
