"""Compiled optimizer steps beside schedulers, scalers, closures, hooks and other steps."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from update.optimizers import of
from update.step_pairs import COMPILED, WAYS, Pair

import zc
import zc.optimizer_step
from zc import torch_private

pytestmark = pytest.mark.usefixtures("fresh_compiler")


@pytest.mark.parametrize(
    ("way", "first"),  # a scheduler wraps a method, which torch.compile does not return
    [("compile", "scheduler"), ("compile_step", "scheduler"), ("compile_step", "step")],
)
def test_schedulers_and_the_step_in_its_place(way: str, first: str, calls: list[str]):
    pair = Pair(torch.optim.AdamW, way)
    rates: list[Any] = []

    def schedule() -> None:
        rates.extend(torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in pair.optimizers)

    if first == "scheduler":
        schedule()
    pair.optimizers[0].step = WAYS[way](pair.optimizers[0])
    if first == "step":
        schedule()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            pair.grads()
            for optimizer in pair.optimizers:
                optimizer.step()
            for rate in rates:
                rate.step()
    assert pair.difference() == 0.0
    assert calls.count("step") == 3


@pytest.mark.parametrize("way", COMPILED)
def test_a_gradient_scaler(way: str, calls: list[str]):
    pair = Pair(torch.optim.AdamW, way)
    pair.optimizers[0].step = pair.update
    scalers = [torch.amp.GradScaler("cpu", init_scale=4.0) for _ in range(2)]
    for i in range(4):
        sides = zip(pair.optimizers, (pair.ours, pair.theirs), scalers, strict=True)
        for optimizer, params, scaler in sides:
            optimizer.zero_grad()
            loss = params[0].square().sum() + params[1].sum()
            scaler.scale(loss * (float("inf") if i == 1 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
    assert pair.difference() == 0.0
    assert [scaler.get_scale() for scaler in scalers] == [2.0, 2.0]
    assert calls.count("step") == 3


def closure_of(params: list[nn.Parameter]) -> Callable[[], torch.Tensor]:
    def closure() -> torch.Tensor:
        loss = params[0].square().sum() + params[1].square().sum()
        for param, grad in zip(params, torch.autograd.grad(loss, params), strict=True):
            param.grad = grad
        return loss

    return closure


@pytest.mark.parametrize("way", COMPILED)
@pytest.mark.parametrize("name", ["AdamW", "LBFGS"])
def test_a_closure_makes_it_the_step_of_torch(name: str, way: str, calls: list[str]):
    pair = Pair(of(name, lr=0.1), way)
    for _ in range(2):
        found = pair.update(closure_of(pair.ours))
        assert torch.equal(found, pair.optimizers[1].step(closure_of(pair.theirs)))
    if name == "AdamW":
        assert calls.count("step") == 0
        pair.update(closure=None)
        pair.optimizers[1].step(None)
        assert calls.count("step") == 1
    assert pair.difference() == 0.0


@pytest.mark.parametrize("way", COMPILED)
def test_hooks_are_called_as_ever(way: str):
    pair = Pair(torch.optim.SGD, way)
    order: list[str] = []
    for side, optimizer in zip("ab", pair.optimizers, strict=True):

        def halve(optimizer: Any, *_: Any, side: str = side) -> None:
            order.append(f"{side} before")
            for param in optimizer.param_groups[0]["params"]:
                param.grad.mul_(0.5)

        optimizer.register_step_pre_hook(halve)
        optimizer.register_step_post_hook(lambda *_, side=side: order.append(f"{side} after"))
    for _ in range(2):
        pair.step()
    assert pair.difference() == 0.0
    assert order == ["a before", "a after", "b before", "b after"] * 2


class Doubling(torch.optim.SGD):
    """Steps twice through its parent."""

    def step(self, closure: Any = None) -> Any:
        super().step()
        return super().step(closure)


@pytest.mark.parametrize("way", COMPILED)
def test_a_step_that_calls_its_parents(way: str):
    torch.optim.SGD([nn.Parameter(torch.ones(1))])  # wraps the parent's step
    pair = Pair(Doubling, way)
    for _ in range(2):
        pair.step()
    assert pair.difference() == 0.0


def test_eager_steps_and_two_optimizers_of_one_class(calls: list[str]):
    first, second = Pair(torch.optim.AdamW), Pair(of("AdamW", lr=0.1))
    for i in range(4):
        for pair in (first, second):
            pair.step()
            if i % 2:
                for optimizer in pair.optimizers:
                    optimizer.step()
    assert first.difference() == second.difference() == 0.0
    assert calls.count("step") == 8


def test_other_backends_compile_as_before(calls: list[str]):
    pair = Pair(torch.optim.SGD)
    pair.step()
    compiles: list[Any] = []

    def backend(module: Any, inputs: Any) -> Any:
        compiles.append(module)
        return module.forward

    update = torch.compile(pair.optimizers[0].step, backend=backend)
    for _ in range(2):
        pair.grads()
        update()
        pair.optimizers[1].step()
    pair.step()
    assert pair.difference() == 0.0
    assert len(compiles) == 1
    assert calls.count("step") == 2


def test_a_step_that_dynamo_has_given_up_on_says_so_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(zc.optimizer_step, "_warned", set())
    replace = torch_private.replace_frame
    monkeypatch.setattr(torch_private, "replace_frame", lambda call: replace(None))
    pair = Pair(torch.optim.SGD)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            pair.step()
    assert pair.difference() == 0.0
    assert [str(w.message) for w in caught if "zc" in str(w.message)] == [
        "SGD.step runs as it is written: Dynamo has given up on it before zc could take it over; "
        "write optimizer.step = zc.compile_step(optimizer)"
    ]
