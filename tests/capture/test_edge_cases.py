"""What reviews found: gradients in place, odd layouts, outputs changed in place, odd backwards."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from multiprocess import run_ranks
from torch import nn

import zc

OPTIONS = {"passes": "zero3", "executor": "interpret"}
ROUNDING = 1e-6  # absolute; two gradients are added before or after their reduction
CHANGES: dict[str, Callable[[Any], Any]] = {
    "plain": lambda params: None,
    "clip_value": lambda params: nn.utils.clip_grad_value_(params, 0.001),
    "clip_norm": lambda params: nn.utils.clip_grad_norm_(params, 0.1),
}
BEFORE = ("none", "zeros", "twice")


class Odd(nn.Module):
    """Rows that no world divides and blocks that need padding."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(7, 9), nn.Linear(9, 70), nn.Linear(70, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))


class CloneOut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(7, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x).tanh().clone()


class TimesWeight(nn.Module):
    """Reads its weight in an in-place product with something else."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(1, 2, 7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sin().mul_(self.w)


class SavesSign(torch.autograd.Function):
    """Backward alone reads something computed from the weight, and returns a saved input."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(w.sign(), x)
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        sign, x = ctx.saved_tensors
        return x.clone(), grad.sum() * sign


class UsesSign(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(16, 7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return SavesSign.apply(x, self.w)


def inputs(step: int, rank: int) -> torch.Tensor:
    return torch.randn(3, 7, generator=torch.Generator().manual_seed(10 * step + rank))


def gradients(rank: int, change: str, before: str) -> tuple[float, bool]:
    """Largest difference of a gradient from DDP's, and whether locals have their shards' shapes."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    base = Odd()
    plain = copy.deepcopy(base)
    ddp = nn.parallel.DistributedDataParallel(plain)
    model = zc.shard(copy.deepcopy(base))

    @torch.compile(backend="zero", options=OPTIONS)
    def step(x: torch.Tensor) -> torch.Tensor:
        loss = model(x).square().sum()
        loss.backward()
        CHANGES[change](model.parameters())
        return loss.detach()

    if before == "zeros":
        for param in model.parameters():
            param.grad = torch.zeros_like(param)
    for i in range(2 if before == "twice" else 1):
        step(inputs(i, rank))
        ddp(inputs(i, rank)).square().sum().backward()
        CHANGES[change](plain.parameters())
    pairs = list(zip(model.parameters(), plain.parameters(), strict=True))
    far = max((p.grad.full_tensor() - q.grad).abs().max().item() for p, q in pairs)
    fits = all(p.grad.to_local().shape == p.to_local().shape for p, _ in pairs)
    return far, fits


def compiled(model: nn.Module) -> Any:
    torch._dynamo.reset()
    return torch.compile(zc.shard(model), backend="zero", options=OPTIONS)


def odd_cases(rank: int, world: int) -> dict[str, Any]:
    found: dict[str, Any] = {f"{c}-{b}": gradients(rank, c, b) for c in CHANGES for b in BEFORE}
    model = zc.shard(Odd())
    run = torch.compile(model, backend="zero", options=OPTIONS)
    run(inputs(0, rank)).sum().backward()
    model.zero_grad()
    model.double()
    found["dtype"] = run(inputs(0, rank).double()).dtype
    out = compiled(CloneOut())(inputs(0, rank))
    out.mul_(3.0)
    out.sum().backward()
    plain = TimesWeight()
    torch.compile(plain, backend="zero", options=OPTIONS | {"passes": "zero0"})(
        inputs(0, rank)
    ).sum().backward()
    mean = torch.stack([inputs(0, r).sin().sum(0) for r in range(world)]).mean(0)
    found["in place"] = (plain.w.grad - mean).abs().max().item()
    model, x = UsesSign(), inputs(0, rank).requires_grad_()
    compiled(model)(x).sum().backward()
    found["sign"] = model._parameters["w"].grad is not None
    found["returned"] = torch.equal(x.grad, x.detach())
    return found


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    return run_ranks(odd_cases, 2, timeout=240)


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("change", CHANGES)
def test_gradients_changed_in_the_step(results: Any, change: str, before: str) -> None:
    for found in results:
        far, fits = found[f"{change}-{before}"]
        assert fits
        assert far <= ROUNDING


def test_a_compiled_model_changes_its_dtype(results: Any) -> None:
    assert all(found["dtype"] is torch.float64 for found in results)


def test_a_product_in_place_reads_the_parameter(results: Any) -> None:
    assert all(found["in place"] <= ROUNDING for found in results)


def test_backward_alone_reads_a_weight_and_returns_what_was_saved(results: Any) -> None:
    assert all(found["sign"] and found["returned"] for found in results)
