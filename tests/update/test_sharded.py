"""``zc.step`` on shards beside the same optimizer run eagerly on whole parameters."""

import copy
from typing import Any

import pytest
import torch
from multiprocess import fake_world, run_ranks
from torch.distributed.tensor import distribute_tensor
from update.optimizers import ELEMENTWISE, WHOLE, Awkward, Make, batch

import zc
from zc.program.collectives import collectives_of

STEPS = 10
PASSES = [{"shard_params": {"zero_stage": 3}}, "shard_update", "clean_graph"]
OPTIONS = {"passes": PASSES, "executor": "interpret"}
REDUCED = {  # absolute, of numbers near 1
    "adafactor": 1e-6,  # means and norms are summed shard by shard
    "lamb": 1e-6,
    "global clip": 1e-6,
    "by data": 1e-6,
    "muon": 2e-3,  # which iterates in bf16, 8 bits, from a norm that may differ in the last one
}
OPTIMIZERS = ELEMENTWISE | WHOLE
pytestmark = pytest.mark.timeout(700)  # the first test waits for all optimizers, on all ranks


class Beside:
    """A sharded model stepped by zc beside plain parameters stepped by torch, equal gradients."""

    def __init__(self, make: Make) -> None:
        torch._dynamo.reset()
        torch.manual_seed(0)
        self.whole: Any = Awkward()
        self.model: Any = zc.shard(copy.deepcopy(self.whole))
        self.ours = make(list(self.model.parameters()))
        self.theirs = make(list(self.whole.parameters()))
        self.update = torch.compile(lambda: zc.step(self.ours), backend="zero", options=OPTIONS)

    def step(self, number: int) -> None:
        """One step of both, from gradients that depend on ``number`` alone."""
        generator = torch.Generator().manual_seed(number)
        for whole, shard in zip(self.whole.parameters(), self.model.parameters(), strict=True):
            whole.grad = torch.randn(whole.shape, generator=generator)
            shard.grad = distribute_tensor(whole.grad, shard.device_mesh, shard.placements)
        self.theirs.step()
        self.update()
        assert all(param.grad is None for param in self.ours.param_groups[0]["params"])

    def difference(self) -> float:
        pairs = zip(self.model.parameters(), self.whole.parameters(), strict=True)
        return max((p.full_tensor() - q).abs().max().item() for p, q in pairs)

    def state_difference(self) -> float:
        """Over all entries of state, which must have the same keys, global shapes and dtypes."""
        found = [0.0]
        for p, q in zip(self.model.parameters(), self.whole.parameters(), strict=True):
            ours, theirs = self.ours.state.get(p, {}), self.theirs.state.get(q, {})
            assert ours.keys() == theirs.keys()
            for key, value in theirs.items():
                mine = ours[key]
                mine = mine.full_tensor() if hasattr(mine, "full_tensor") else mine
                mine, value = torch.as_tensor(mine), torch.as_tensor(value)
                assert mine.shape == value.shape
                assert mine.dtype == value.dtype
                found.append((mine - value).abs().max().item())
        return max(found)


def differences(rank: int, world: int) -> dict[str, tuple[float, float]]:
    """Largest difference of a parameter and of an entry of state, by optimizer."""
    found = {}
    for name, make in OPTIMIZERS.items():
        beside = Beside(make)
        rates = [
            torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step))
            for o in (beside.ours, beside.theirs)
        ]
        worst = 0.0
        for i in range(STEPS):
            beside.step(i)
            worst = max(worst, beside.difference())
            for rate in rates:
                rate.step()
        found[name] = (worst, beside.state_difference())
    return found


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.matrix)])
def results(request: pytest.FixtureRequest) -> list[dict[str, tuple[float, float]]]:
    return run_ranks(differences, request.param, timeout=600)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_updates_have_the_bits_of_eager_torch(results: Any, name: str) -> None:
    for found in results:
        assert found[name] == (0.0, 0.0)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_updates_send_nothing(name: str) -> None:
    with fake_world(4):
        model = zc.shard(Awkward())
        optimizer = ELEMENTWISE[name](list(model.parameters()))

        def step(x: torch.Tensor) -> torch.Tensor:
            loss = model(x).square().mean()
            loss.backward()
            zc.step(optimizer)
            return loss.detach()

        program = zc.capture(step, batch(0, 0), passes="zero3")
    assert [c for c in collectives_of(program) if c.stamp.phase == "update"] == []
    assert program.state


@pytest.mark.parametrize("name", WHOLE)
def test_updates_that_need_whole_tensors(results: Any, name: str) -> None:
    for found in results:
        assert max(found[name]) <= REDUCED[name]
