"""Optimizers that no program can hold, and optimizers that are gone: every word of the refusal."""

import gc
import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed, InternalTorchDynamoError
from update.third_party import GlobalClip

import zc
from zc.errors import CaptureError, ExecutionError, ShardError
from zc.state.optimizers import handle_of, optimizer_of

PASSES = [{"shard_params": {"zero_stage": 0}}, "shard_update", "clean_graph"]
OPTIONS = {"passes": PASSES, "executor": "interpret"}


class Remembers(torch.optim.SGD):
    """Keeps a norm as a Python number."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for param in self.param_groups[0]["params"]:
            state = self.state[param]
            param.sub_(param.grad * state.setdefault("norm", 1.0))
            state["norm"] = param.grad.norm().item()


class Weighted(torch.optim.SGD):
    """Makes a tensor of numbers in each step."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for param in self.param_groups[0]["params"]:
            param.sub_(param.grad * torch.tensor([1.0, 2.0, 3.0]))


def clips_two_groups(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return GlobalClip([{"params": [param]} for param in params])


REFUSED: dict[str, tuple[Any, str]] = {
    "data": (Remembers, "the number in state['norm'] depends on data; keep it as a tensor"),
    "constants": (Weighted, "the optimizer makes a tensor of constants; keep it in its state"),
    "groups": (
        clips_two_groups,
        "GlobalClip.step mixes parameters of several groups; give it one parameter group",
    ),
}


def stepping(make: Callable[[list[nn.Parameter]], Any]) -> Any:
    """A compiled function that steps an optimizer of two parameters from gradients of ones."""
    torch._dynamo.reset()
    params = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    for param in params:
        param.grad = torch.ones(3)
    optimizer = make(params)
    return torch.compile(lambda: zc.step(optimizer), backend="zero", options=OPTIONS)


@pytest.mark.parametrize("name", REFUSED)
def test_steps_that_cannot_be_compiled(name: str):
    make, message = REFUSED[name]
    with pytest.raises(BackendCompilerFailed) as error:
        stepping(make)()
    assert isinstance(error.value.inner_exception, CaptureError)
    assert str(error.value.inner_exception) == message


def hooked(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(params)
    optimizer.register_step_post_hook(lambda *_: None)
    return optimizer


def test_hooks_around_a_step():
    with pytest.raises(InternalTorchDynamoError) as error:
        stepping(hooked)()
    assert str(error.value).splitlines()[0] == (
        "ShardError: SGD has hooks around its step, which a compiled step cannot call; remove "
        "them, or call zc.step outside the compiled function"
    )


class Restless:
    """A setting that reads otherwise each time."""

    counts = itertools.count()

    def __repr__(self) -> str:
        return str(next(self.counts))


def restless(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": params, "mood": Restless()}])


def test_a_trace_that_does_not_hold_when_it_is_made():
    with pytest.raises(ExecutionError) as error:
        stepping(restless)()
    assert re.sub(r"^.*?: ", "", str(error.value)) == (
        "a fresh trace of the optimizer does not describe it; please report this with the dump of "
        "options={'dump': DIR}"
    )


def test_an_optimizer_that_is_gone():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(3))])
    handle = handle_of(optimizer)
    assert optimizer_of(handle) is optimizer
    del optimizer
    gc.collect()
    with pytest.raises(ShardError) as error:
        optimizer_of(handle)
    assert str(error.value) == (
        "the optimizer of a compiled step is gone; keep it while the step is used"
    )
