"""What ``zc.microbatches`` refuses, eagerly and in a compiled step, with the whole message."""

from typing import Any

import pytest
import torch
from torch import nn

import zc
from zc.errors import MicrobatchError

pytestmark = pytest.mark.usefixtures("fresh_compiler")


WEIGHT = nn.Parameter(torch.ones(4))


def nothing(*micro: torch.Tensor) -> torch.Tensor:
    return torch.zeros(())


def whole_rows(x: torch.Tensor) -> torch.Tensor:
    (x * WEIGHT).sum().backward()
    return x


def no_tensor(x: torch.Tensor) -> Any:
    whole_rows(x)


def a_count(x: torch.Tensor) -> Any:
    whole_rows(x)
    return torch.tensor(3)


def again(x: torch.Tensor) -> Any:
    return zc.microbatches(nothing, 1, x, reduce="mean")


X = torch.ones(8, 4)
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "no such way to combine": (
        (nothing, 2, X, "max"),
        "reduce is 'max'; say 'mean' or 'sum'",
    ),
    "no part": (
        (nothing, 0, X, "mean"),
        "zc.microbatches into 0 parts; give a count of 1 or more",
    ),
    "no batch": (
        (nothing, 2, "mean"),
        "zc.microbatches has no batch to split; pass its tensors behind the count",
    ),
    "no tensor": (
        (nothing, 2, X, 3, "mean"),
        "entry 1 of the batch is a int; pass tensors, and let the function reach other values by "
        "itself",
    ),
    "uneven": (
        (nothing, 3, X, "mean"),
        "entry 0 of the batch has shape [8, 4], whose rows do not divide into 3 micro-batches; pad "
        "the batch, or choose another count",
    ),
    "a number": (
        (nothing, 3, torch.ones(()), "mean"),
        "entry 0 of the batch has shape [], whose rows do not divide into 3 micro-batches; pad the "
        "batch, or choose another count",
    ),
    "a differentiable batch": (
        (nothing, 2, X.clone().requires_grad_(), "mean"),
        "entry 0 of the batch requires a gradient, which would come out in parts; pass "
        "entry.detach()",
    ),
    "no backward": (
        (nothing, 2, X, "mean"),
        "the function of zc.microbatches computes no gradient; call backward() on its loss there",
    ),
    "rows returned": (
        (whole_rows, 2, X, "mean"),
        "the function of zc.microbatches returned a Tensor of shape [4, 4]; return 0-d tensors, "
        "alone or in a tuple, list or dict: they are combined over the micro-batches",
    ),
    "nothing returned": (
        (no_tensor, 2, X, "mean"),
        "the function of zc.microbatches returned a NoneType; return 0-d tensors, alone or in a "
        "tuple, list or dict: they are combined over the micro-batches",
    ),
    "the mean of a count": (
        (a_count, 2, X, "mean"),
        "the function of zc.microbatches returned a torch.int64 number, which has no mean in its "
        "dtype; return item.float()",
    ),
    "nested": (
        (again, 2, X, "mean"),
        "zc.microbatches is called inside the function of another zc.microbatches; call it once, "
        "with the product of both counts",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str):
    (fn, count, *entries, reduce), message = REFUSED[name]
    with pytest.raises(MicrobatchError) as error:
        zc.microbatches(fn, count, *entries, reduce=reduce)
    assert str(error.value) == message


@pytest.mark.parametrize("name", [n for n in REFUSED if n not in ("nested", "no backward")])
def test_refusals_in_a_compiled_step(name: str):
    (fn, count, *entries, reduce), message = REFUSED[name]

    def step() -> Any:
        return zc.microbatches(fn, count, *entries, reduce=reduce)

    options: dict[str, Any] = {"passes": "zero0", "executor": "interpret"}
    with pytest.raises(MicrobatchError) as error:
        torch.compile(step, backend="zero", options=options)()
    assert str(error.value) == message


def test_a_refusal_leaves_nothing_behind():
    with pytest.raises(MicrobatchError):
        zc.microbatches(nothing, 2, X, reduce="mean")
    model = nn.Linear(4, 1)
    before = [param.detach().clone() for param in model.parameters()]

    def part(x: torch.Tensor) -> torch.Tensor:
        loss = model(x).square().mean()
        loss.backward()
        return loss.detach()

    zc.microbatches(part, 2, X, reduce="mean")
    assert all(param.grad is not None for param in model.parameters())
    assert all(map(torch.equal, before, model.parameters()))
