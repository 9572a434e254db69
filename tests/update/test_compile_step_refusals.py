"""Optimizer steps that cannot be compiled, each with the whole message."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from update.optimizers import of
from update.step_pairs import COMPILED, WAYS, Pair

import zc
from zc.errors import CaptureError, ShardError

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def refusal_of(optimizer: Any, way: str) -> str:
    with pytest.raises(CaptureError) as error:
        WAYS[way](optimizer)()
    return str(error.value)


@pytest.mark.parametrize("way", COMPILED)
def test_sparse_gradients_are_refused(way: str):
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    assert refusal_of(torch.optim.SGD(embedding.parameters()), way) == (
        "'group0.param0' has a gradient of layout torch.sparse_coo, which SGD.step cannot be "
        "compiled for; make it dense, or call SGD.step uncompiled"
    )


@pytest.mark.parametrize("way", COMPILED)
def test_unscaling_inside_the_step_is_refused(way: str):
    pair = Pair(of("AdamW", fused=True), way)
    pair.optimizers[0].step = pair.update
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(pair.ours[0].sum()).backward()
    with pytest.raises(CaptureError) as error:
        scaler.step(pair.optimizers[0])
    assert str(error.value) == (
        "torch.amp.GradScaler leaves it to AdamW(fused=True) to unscale gradients, which a "
        "compiled step does not; build AdamW without fused=True"
    )


def test_a_gradient_that_lies_elsewhere_is_refused():
    from multiprocess import fake_world

    with fake_world(2):
        model = zc.shard(nn.Linear(4, 8, bias=False))
        param: Any = model.weight
        assert isinstance(param, DTensor)
        param.grad = distribute_tensor(torch.ones(8, 4), param.device_mesh, [Replicate()])
        optimizer = torch.optim.SGD(model.parameters())
        with pytest.raises(CaptureError) as error:
            zc.compile_step(optimizer)()
    assert str(error.value) == (
        f"'weight' lies as {(Shard(0),)} and its gradient as {(Replicate(),)}; redistribute the "
        "gradient as its parameter lies"
    )


def test_an_optimizer_from_before_shard_is_refused():
    from multiprocess import fake_world

    with fake_world(2):
        model = nn.Linear(4, 8)
        optimizer = torch.optim.SGD(model.parameters())
        zc.shard(model)
        with pytest.raises(ShardError) as error:
            zc.compile_step(optimizer)
    assert str(error.value) == (
        "SGD holds 'weight' as it was before zc.shard and would train nothing; build the optimizer "
        "after zc.shard and zc.materialize"
    )


def test_what_cannot_be_traced_is_refused_by_name():
    class Noisy(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            for param in self.param_groups[0]["params"]:
                param.add_(torch.randn_like(param))

    pair = Pair(Noisy)
    pair.grads()
    with pytest.raises(CaptureError, match=r"the optimizer draws random numbers \(aten.randn_like"):
        pair.update()
