"""Groups and tensors that are not there; each test names the versions it was tried on."""

import torch
import torch.distributed as dist

from zc import torch_private


def test_a_fake_world_has_its_size_and_ends():
    """Tried on 2.13."""
    with torch_private.fake_world(1024, rank=1000):
        assert (dist.get_world_size(), dist.get_rank()) == (1024, 1000)
        dist.all_reduce(torch.ones(2))
    assert not dist.is_initialized()


def test_tensors_without_memory_have_types():
    """Tried on 2.13."""
    real = torch.ones(3)
    with torch_private.without_memory():
        huge = torch.zeros(1 << 40)
        assert (huge[:3] + real).shape == (3,)
    assert huge.numel() == 1 << 40
