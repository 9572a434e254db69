"""Losses that are not finite, sparse gradients, other optimizers: as in eager, or refused."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

import zc

ONE_BY_ONE: list[Any] = [{"shard_params": {"zero_stage": 0}}, "shard_update", "clean_graph"]
OPTIONS: dict[str, Any] = {"passes": ONE_BY_ONE, "executor": "interpret"}


class Unread(nn.Module):
    """One layer is not read, the other only in some calls."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.sometimes, self.never = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor, both: bool) -> torch.Tensor:
        x = self.used(x)
        return self.sometimes(x) if both else x


def pair(model: nn.Module, make: Any) -> list[Any]:
    """A compiled step and an eager one, of equal models: the step, then its model."""
    torch._dynamo.reset()
    found = []
    for compiled in (True, False):
        own = copy.deepcopy(model)
        optimizer = make(own.parameters())

        def step(*inputs: Any, own: Any = own, optimizer: Any = optimizer) -> torch.Tensor:
            loss = own(*inputs).square().mean()
            loss.backward()
            zc.step(optimizer)
            return loss.detach()

        run = torch.compile(step, backend="zero", options=OPTIONS) if compiled else step
        found += [run, own]
    return found


def assert_alike(ours: nn.Module, theirs: nn.Module) -> None:
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_loss_that_is_not_finite(value: float):
    step, ours, eager, theirs = pair(nn.Linear(4, 2), lambda p: torch.optim.AdamW(p, lr=0.1))
    for x in (torch.randn(3, 4), torch.full((3, 4), value), torch.randn(3, 4)):
        torch.testing.assert_close(step(x), eager(x), rtol=0, atol=0, equal_nan=True)
        assert_alike(ours, theirs)


def test_parameters_that_a_call_does_not_read():
    step, ours, eager, theirs = pair(Unread(), lambda p: torch.optim.AdamW(p, lr=0.1))
    for both in (True, False, True, True, False):
        x = torch.randn(3, 4)
        assert torch.equal(step(x, both), eager(x, both))
        assert_alike(ours, theirs)


def test_another_optimizer_in_the_place_of_the_first():
    torch._dynamo.reset()
    model = nn.Linear(4, 2)
    twin = copy.deepcopy(model)
    both = [torch.optim.AdamW(model.parameters(), lr=0.1), torch.optim.SGD(model.parameters(), 0.1)]
    theirs = [torch.optim.AdamW(twin.parameters(), lr=0.1), torch.optim.SGD(twin.parameters(), 0.1)]

    @torch.compile(backend="zero", options=OPTIONS)
    def step(x: torch.Tensor, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        loss = model(x).square().mean()
        loss.backward()
        zc.step(optimizer)
        return loss.detach()

    for index in (0, 1, 0, 1):
        x = torch.randn(3, 4)
        step(x, both[index])
        twin(x).square().mean().backward()
        zc.step(theirs[index])
        assert_alike(model, twin)


@pytest.mark.parametrize("bag", [False, True])
@pytest.mark.parametrize("level", [1, 2])
def test_sparse_gradients_are_refused_by_name(level: int, bag: bool):
    torch._dynamo.reset()
    kind = nn.EmbeddingBag if bag else nn.Embedding
    model = nn.ModuleDict({"words": kind(5, 3, sparse=True)})
    optimizer = torch.optim.SparseAdam(model.parameters())

    def forward(x: torch.Tensor) -> torch.Tensor:
        return model["words"](x).square().mean()

    def step(x: torch.Tensor) -> torch.Tensor:
        loss = forward(x)
        loss.backward()
        zc.step(optimizer)
        return loss.detach()

    compiled = torch.compile(forward if level == 1 else step, backend="zero", options=OPTIONS)
    tokens = torch.tensor([[1, 2]])
    with pytest.raises(BackendCompilerFailed) as error:
        compiled(tokens)
    assert str(error.value).splitlines()[1] == (
        "CaptureError: 'words.weight' would get a sparse gradient, which a program cannot hold; "
        "build its embedding with sparse=False"
    )
    with torch.no_grad():
        torch.testing.assert_close(
            torch.compile(forward, backend="zero", options=OPTIONS)(tokens), forward(tokens)
        )


def test_a_step_in_full_graph():
    """Dynamo refuses ``backward()`` there before it asks other backends."""
    _, _, eager, theirs = pair(nn.Linear(4, 2), lambda p: torch.optim.AdamW(p, lr=0.1))
    ours = copy.deepcopy(theirs)
    optimizer = torch.optim.AdamW(ours.parameters(), lr=0.1)

    @torch.compile(backend="zero", fullgraph=True, options=OPTIONS)
    def step(x: torch.Tensor) -> torch.Tensor:
        loss = ours(x).square().mean()
        loss.backward()
        zc.step(optimizer)
        return loss.detach()

    for _ in range(2):
        x = torch.randn(3, 4)
        assert torch.equal(step(x), eager(x))
        assert_alike(ours, theirs)
