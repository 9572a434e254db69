"""Optimizers that would train nothing, and ``zc.step``."""

import gc
import weakref

import pytest
import torch
from multiprocess import fake_world
from torch import nn

from zc.errors import ShardError
from zc.state.optimizers import check_optimizer
from zc.state.shard import shard
from zc.state.step import step

TRAINS_NOTHING = (
    "AdamW holds 'weight' as it was before zc.shard and would train nothing; build the optimizer "
    "after zc.shard and zc.materialize"
)


@pytest.fixture(autouse=True)
def world():
    with fake_world(2):
        yield


def test_an_optimizer_built_before_sharding_is_refused_when_it_steps():
    model = nn.Linear(16, 16)
    optimizer = torch.optim.AdamW(model.parameters())
    shard(model)
    for use in (optimizer.step, lambda: step(optimizer), lambda: check_optimizer(optimizer)):
        with pytest.raises(ShardError) as caught:
            use()
        assert str(caught.value) == TRAINS_NOTHING


def test_an_optimizer_of_another_model_is_refused_when_the_model_is_given():
    model, other = shard(nn.Linear(16, 16)), shard(nn.Linear(16, 16))
    optimizer = torch.optim.SGD(other.parameters())
    check_optimizer(optimizer)
    check_optimizer(optimizer, other)
    with pytest.raises(ShardError) as caught:
        check_optimizer(optimizer, model)
    assert str(caught.value) == (
        "SGD holds no parameter of Linear; build it from model.parameters() after zc.shard"
    )


def test_step_updates_and_clears_gradients():
    model = shard(nn.Linear(16, 16))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    before = model.bias.detach().clone().to_local()
    model(torch.ones(2, 16)).sum().backward()
    step(optimizer)
    assert torch.equal(model.bias.to_local(), before - 0.5 * 2)
    assert model.bias.grad is None


def test_step_satisfies_a_learning_rate_scheduler():
    model = shard(nn.Linear(16, 16))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    step(optimizer)
    scheduler.step()  # warns when it has seen no optimizer.step()


def test_replaced_parameters_are_freed():
    model = nn.Linear(16, 16)
    original = weakref.ref(model.weight)
    shard(model)
    gc.collect()
    assert original() is None
