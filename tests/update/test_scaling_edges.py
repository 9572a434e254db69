"""Scaled steps that torch's ``GradScaler`` would not take, and steps that fail half-way."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed
from torch.amp.grad_scaler import GradScaler

import zc
from zc.errors import CaptureError
from zc.run.variants import Variants

PASSES: list[Any] = [{"shard_params": {"zero_stage": 0}}, "shard_update", "clean_graph"]
OPTIONS: dict[str, Any] = {"passes": PASSES, "executor": "interpret"}
NO_GRADIENT = (
    "steps SGD with a GradScaler where no parameter of SGD has a gradient, so there is nothing to "
    "look for infinities in; call backward() before, or zc.step without the scaler"
)
HALF = (
    "unscales the gradient of 'param0', which is fp16 and cannot hold what comes out; keep "
    "parameters in fp32 and compute in fp16 under torch.autocast"
)
DEVICES = (
    "steps with one GradScaler 'param0' on cpu and 'param1' on meta; build an optimizer and a "
    "GradScaler for each device"
)


def held(*kinds: tuple[torch.dtype, str], grads: bool = True) -> torch.optim.Optimizer:
    """An optimizer of one parameter of each dtype and device, with gradients of these."""
    params = [nn.Parameter(torch.ones(3, dtype=d, device=where)) for d, where in kinds]
    for param in params if grads else ():
        param.grad = torch.ones_like(param)
    return torch.optim.SGD(params, lr=0.1)


def none() -> torch.optim.Optimizer:
    return held((torch.float32, "cpu"), grads=False)


def half() -> torch.optim.Optimizer:
    return held((torch.float16, "cpu"))


def devices() -> torch.optim.Optimizer:
    return held((torch.float32, "cpu"), (torch.float32, "meta"))


def started() -> GradScaler:
    scaler = GradScaler("cpu")
    scaler.scale(torch.ones(()))
    return scaler


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize(
    ("make", "message"), [(none, NO_GRADIENT), (half, HALF), (devices, DEVICES)]
)
def test_gradients_that_no_scaler_takes(
    make: Callable[[], torch.optim.Optimizer], message: str, unscale: bool
):
    torch._dynamo.reset()
    optimizer, scaler = make(), started()

    def step() -> None:
        if unscale:
            zc.unscale_(optimizer, scaler)
        zc.step(optimizer, scaler)

    with pytest.raises(BackendCompilerFailed) as error:
        torch.compile(step, backend="zero", options=OPTIONS)()
    assert isinstance(error.value.inner_exception, CaptureError)
    assert str(error.value.inner_exception).partition("step ")[2] == message


def test_fp16_that_is_only_unscaled():
    torch._dynamo.reset()
    optimizer, scaler = half(), started()

    def step() -> None:
        zc.unscale_(optimizer, scaler)

    with pytest.raises(BackendCompilerFailed) as error:
        torch.compile(step, backend="zero", options=OPTIONS)()
    assert str(error.value.inner_exception).partition("step ")[2] == HALF.replace(
        "the gradient of 'param0'", "a gradient of shape [3]"
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [(none, "No inf checks were recorded"), (half, "Attempting to unscale FP16 gradients")],
)
def test_eager_steps_refuse_the_same(make: Callable[[], torch.optim.Optimizer], words: str):
    with pytest.raises((AssertionError, ValueError), match=words):
        zc.step(make(), started())


def test_a_skip_is_forgotten_where_the_step_then_fails(monkeypatch: pytest.MonkeyPatch):
    """The step after it counts as one, which ``LRScheduler`` asks."""
    torch._dynamo.reset()
    made: list[Variants] = []
    trace = Variants.trace

    def remembered(self: Variants) -> Any:
        made.append(self)
        return trace(self)

    monkeypatch.setattr(Variants, "trace", remembered)
    optimizer, scaler = held((torch.float32, "cpu")), started()
    param = optimizer.param_groups[0]["params"][0]
    step = torch.compile(lambda: zc.step(optimizer, scaler), backend="zero", options=OPTIONS)
    step()
    variant: Any = made[0]._last
    (bound,) = variant.steps
    found_inf = bound.update.scaler_name("found_inf")

    def fails(args: list[Any]) -> list[Any]:
        bound.store_number(found_inf, 1.0)
        raise RuntimeError("a collective timed out")

    def does_nothing(args: list[Any]) -> list[Any]:
        return []

    del optimizer._opt_called  # type: ignore[attr-defined]
    variant.loop = fails
    param.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match="a collective timed out"):
        step()
    assert not hasattr(optimizer, "_opt_called")
    variant.loop = does_nothing
    param.grad = torch.ones(3)
    step()
    assert optimizer._opt_called  # type: ignore[attr-defined]
