"""``round_stochastically`` in training: small steps that count, resuming, ranks."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from multiprocess import run_ranks
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import distribute_tensor
from update.optimizers import ELEMENTWISE, Awkward, of

import zc
from zc.program.updates import ROUNDING_STEP

BF16 = torch.bfloat16
EAGER: list[Any] = [{"shard_params": {"zero_stage": 0}}, "shard_update", "round_stochastically"]
KERNELS = [*EAGER, "clean_graph", "lower_update"]
NEAREST = [item for item in KERNELS if item != "round_stochastically"]


class Trained:
    """A small bf16 model stepped by zc, from batches that depend on the step alone."""

    def __init__(self, make: Any, passes: list[Any]) -> None:
        torch._dynamo.reset()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)).to(BF16)
        self.optimizer = make(list(self.model.parameters()))
        options = {"passes": passes, "executor": "interpret"}
        self.step = torch.compile(self._step, backend="zero", options=options)

    def _step(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = (self.model(x).float() - y).square().mean()
        loss.backward()
        zc.step(self.optimizer)
        return loss.detach()

    def train(self, first: int, last: int) -> list[float]:
        losses = []
        target = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
        for i in range(first, last):
            x = torch.randn(64, 8, generator=torch.Generator().manual_seed(100 + i))
            losses.append(self.step(x.to(BF16), torch.tanh(x @ target)).item())
        return losses


@pytest.mark.parametrize("passes", [EAGER, KERNELS], ids=["ops", "kernels"])
@pytest.mark.parametrize("name", ["sgd momentum", "adamw"])
def test_a_checkpoint_resumes_with_the_same_bits(name: str, passes: list[Any]):
    whole = Trained(ELEMENTWISE[name], passes)
    whole.train(0, 3)
    kept = copy.deepcopy((whole.model.state_dict(), whole.optimizer.state_dict()))
    assert kept[1]["param_groups"][0][ROUNDING_STEP] == 3.0
    expected = whole.train(3, 6)
    resumed = Trained(ELEMENTWISE[name], passes)
    resumed.model.load_state_dict(kept[0])
    resumed.optimizer.load_state_dict(kept[1])
    assert resumed.train(3, 6) == expected
    pairs = zip(resumed.model.parameters(), whole.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_checkpoint_of_another_optimizer_counts_from_zero():
    trained = Trained(ELEMENTWISE["adamw"], EAGER)
    trained.train(0, 2)
    kept = copy.deepcopy(trained.optimizer.state_dict())
    del kept["param_groups"][0][ROUNDING_STEP]
    trained.optimizer.load_state_dict(kept)
    trained.train(2, 3)
    assert trained.optimizer.param_groups[0][ROUNDING_STEP] == 1.0


STEPS = 800
# losses of the last ten steps to nearest, by those with stochastic rounding: measured 4.0 and 5.6
GAINS = {"adamw": (of("AdamW", lr=3e-4), 2.5), "momentum": (of("SGD", lr=0.05, momentum=0.9), 3.5)}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """So small a model has nothing for a second one to do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", GAINS)
def test_training_gets_further_than_to_nearest(name: str):
    make, gain = GAINS[name]

    def last(passes: list[Any]) -> float:
        return sum(Trained(make, passes).train(0, STEPS)[-10:])

    assert last(KERNELS) * gain <= last(NEAREST)


def rank_results(rank: int, world: int) -> list[list[torch.Tensor]]:
    """Whole parameters after some steps from gradients that depend on the step alone."""
    return [_updated(make, shard=True) for make in (of("AdamW"), of("SGD", lr=0.1))]


def _updated(make: Any, *, shard: bool) -> list[torch.Tensor]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model: Any = Awkward().to(BF16)
    model = zc.shard(model) if shard else model
    params = list(model.parameters())
    optimizer = make(params)
    stage = {"shard_params": {"zero_stage": 3 if shard else 0}}
    options = {"passes": [stage, *KERNELS[1:]], "executor": "interpret"}
    update = torch.compile(lambda: zc.step(optimizer), backend="zero", options=options)
    for step in range(3):
        draws = torch.Generator().manual_seed(step)
        for p in params:
            grad = torch.randn(p.shape, generator=draws).to(BF16)
            p.grad = distribute_tensor(grad, p.device_mesh, p.placements) if shard else grad
        update()
    return [p.full_tensor() if shard else p.detach().clone() for p in params]


def test_two_ranks_have_the_bits_of_one():
    alone = [_updated(make, shard=False) for make in (of("AdamW"), of("SGD", lr=0.1))]
    for found in run_ranks(rank_results, 2, timeout=200):
        for ours, theirs in zip(found, alone, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_resuming_through_distributed_checkpoint(tmp_path: Path):
    """Which loads only what the optimizer has already: the count must be there."""
    whole = Trained(ELEMENTWISE["adamw"], KERNELS)
    whole.train(0, 3)
    kept = {"model": whole.model.state_dict(), "optim": optimizer_state(whole)}
    dcp.save(kept, checkpoint_id=tmp_path, no_dist=True)
    expected = whole.train(3, 6)
    resumed = Trained(ELEMENTWISE["adamw"], KERNELS)
    resumed.optimizer.param_groups[0][ROUNDING_STEP] = 0.0
    found = {"model": resumed.model.state_dict(), "optim": optimizer_state(resumed)}
    dcp.load(found, checkpoint_id=tmp_path, no_dist=True)
    set_optimizer_state_dict(resumed.model, resumed.optimizer, found["optim"])
    assert resumed.optimizer.param_groups[0][ROUNDING_STEP] == 3.0
    assert resumed.train(3, 6) == expected


def optimizer_state(trained: Trained) -> dict[str, Any]:
    return get_optimizer_state_dict(trained.model, trained.optimizer)
