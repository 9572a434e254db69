"""``torch.compile(optimizer.step, backend="zero")`` and ``zc.compile_step`` beside eager steps."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from update.optimizers import ELEMENTWISE, WHOLE, Make, of
from update.step_pairs import COMPILED, OPTIONS, Pair

import zc

OPTIMIZERS: dict[str, Make] = (
    ELEMENTWISE
    | WHOLE
    | {"adamw fused": of("AdamW", fused=True), "adam foreach": of("Adam", foreach=True)}
)
FUSED_ROUNDING = 1e-6  # torch's fused AdamW rounds otherwise than its formula
pytestmark = pytest.mark.usefixtures("fresh_compiler")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_equals_itself(name: str, calls: list[str]):
    pair = Pair(OPTIMIZERS[name])
    for i in range(4):
        for optimizer in pair.optimizers:
            optimizer.param_groups[0]["lr"] *= 1 / (1 + i)
        pair.step()
    assert pair.difference() <= (FUSED_ROUNDING if name == "adamw fused" else 0.0)
    assert calls.count("step") == 4


@pytest.mark.parametrize("way", COMPILED)
def test_the_learning_rate_changes_a_hundred_times(way: str, calls: list[str]):
    pair = Pair(torch.optim.AdamW, way)
    for i in range(100):
        for optimizer in pair.optimizers:
            group = optimizer.param_groups[0]
            group["lr"], group["betas"] = 0.01 / (1 + i), (0.9 - 0.001 * i, 0.99)
        pair.step()
    assert pair.difference() == 0.0
    assert calls.count("step") == 100
    assert calls.count("trace") == 1
    assert calls.count("frame") <= 2


@pytest.mark.parametrize("way", COMPILED)
def test_gradients_may_be_missing_and_stay_as_they_are(way: str, calls: list[str]):
    pair = Pair(torch.optim.AdamW, way)
    for skipped in ((0, 1), (), (0,), (1,), (0,), ()):
        pair.step(*skipped)
        given = [param.grad for param in pair.ours]
        assert [grad is None for grad in given] == [i in skipped for i in range(2)]
        assert all(
            p.grad is None or torch.equal(p.grad, q.grad)  # type: ignore[arg-type]
            for p, q in zip(pair.ours, pair.theirs, strict=True)
        )
    assert pair.difference() == 0.0
    assert calls.count("trace") == 4  # one set of parameters each, and unequal step counts


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Adafactor"])
def test_a_checkpoint_goes_from_eager_to_zc_and_back(name: str):
    pair = Pair(of(name, lr=0.1, **({"momentum": 0.9} if name == "SGD" else {})))
    for _ in range(3):
        pair.step()
    ours, theirs = (optimizer.state_dict() for optimizer in pair.optimizers)
    for key, entries in theirs["state"].items():
        assert entries.keys() == ours["state"][key].keys()
    pair.optimizers[0].load_state_dict(copy.deepcopy(theirs))
    pair.optimizers[1].load_state_dict(copy.deepcopy(ours))
    for _ in range(3):
        pair.step()
    assert pair.difference() == 0.0


def test_a_further_group_and_another_parameter():
    pair = Pair(lambda params: torch.optim.SGD(params[:1], lr=0.1, momentum=0.9))
    pair.step(1)
    for optimizer, params in zip(pair.optimizers, (pair.ours, pair.theirs), strict=True):
        optimizer.add_param_group({"params": params[1:], "lr": 0.5})
    pair.step()
    for optimizer, params in zip(pair.optimizers, (pair.ours, pair.theirs), strict=True):
        params[0] = optimizer.param_groups[0]["params"][0] = nn.Parameter(torch.ones(5, 3))
    pair.step()
    assert pair.difference() == 0.0


def test_the_program_of_a_step(golden: Any):
    param = nn.Parameter(torch.ones(5, 3))
    param.grad = torch.ones(5, 3)
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.ones(2))]}, {"params": [param]}])
    golden(str(zc.capture(zc.compile_step(optimizer, OPTIONS))))
