"""``zc.microbatches``: how often it is captured, with what around it, and where it is a loop."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from state.microbatch_steps import (
    ROUNDING,
    Net,
    assert_close,
    backward_of,
    batch,
    run_by,
    values_of,
)
from torch import nn

import zc
from zc.backend import Compilation

pytestmark = pytest.mark.usefixtures("fresh_compiler")


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one at each program of a whole step."""
    found: list[int] = []
    whole = Compilation.whole

    def counted(self: Compilation, *args: Any) -> Any:
        found.append(1)
        return whole(self, *args)

    monkeypatch.setattr(Compilation, "whole", counted)
    return found


def test_a_step_is_captured_once_for_any_count(captures: list[int]):
    model = Net()
    sizes = set()
    for count in (1, 2, 8):

        def step(x: torch.Tensor, y: torch.Tensor, count: int = count) -> torch.Tensor:
            return zc.microbatches(backward_of(model), count, x, y, reduce="sum")

        sizes.add(len(zc.capture(step, *batch(0)).graph.nodes))
    assert len(sizes) == 1
    assert len(captures) == 3


def test_another_count_compiles_anew(captures: list[int]):
    ours, theirs = Net(), Net()
    theirs.load_state_dict(ours.state_dict())
    mine, other = (torch.optim.SGD(m.parameters(), 0.1) for m in (ours, theirs))

    def step(x: torch.Tensor, y: torch.Tensor, count: int) -> torch.Tensor:
        loss = zc.microbatches(backward_of(ours), count, x, y, reduce="mean")
        zc.step(mine)
        return loss

    run = run_by("interpret", step)
    for count in (4, 2, 8, 4, 2):
        loss = backward_of(theirs)(*batch(count))
        zc.step(other)
        assert_close(run(*batch(count), count), loss)
    assert_close(values_of(ours), values_of(theirs))
    assert len(captures) == 3


@pytest.mark.parametrize("executor", ["interpret", "inductor"])
def test_batches_of_several_sizes(executor: str, captures: list[int]):
    model = Net()
    step = run_by(executor, lambda x, y: zc.microbatches(backward_of(model), 4, x, y, reduce="sum"))
    for rows in (8, 16, 12, 24):
        x, y = batch(0, rows)
        parts = [backward_of(model)(*part) for part in zip(x.chunk(4), y.chunk(4), strict=True)]
        assert_close(step(x, y), torch.stack(parts).sum())
    assert len(captures) == 2  # the second size is a symbol


def test_gradients_from_elsewhere_in_the_step():
    """Before, in two loops and behind them; and from the steps before, halved."""
    ours, theirs = Net(), Net()
    theirs.load_state_dict(ours.state_dict())

    def step(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Any:
        for param in model.parameters():
            if param.grad is not None:
                param.grad.mul_(0.5)
        backward_of(model)(2 * x, y)
        one = zc.microbatches(backward_of(model), 4, x, y, reduce="mean")
        two = zc.microbatches(backward_of(model), 2, 3 * x, y, reduce="sum")
        model.up.weight.square().sum().backward()  # type: ignore[union-attr, operator]
        return one, two

    run = run_by("interpret", lambda x, y: step(ours, x, y))
    for number in range(3):
        assert_close(run(*batch(number)), step(theirs, *batch(number)))
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert p.grad is not None
            torch.testing.assert_close(p.grad, q.grad, rtol=ROUNDING, atol=ROUNDING)


def test_a_graph_break_falls_back_to_a_python_loop():
    ours, theirs = Net(), Net()
    theirs.load_state_dict(ours.state_dict())

    def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        out = ours(x)
        torch._dynamo.graph_break()
        loss = F.cross_entropy(out, y)
        loss.backward()
        return loss.detach()

    run = run_by("interpret", lambda x, y: zc.microbatches(loss_of, 4, x, y, reduce="mean"))
    assert_close(run(*batch(0)), backward_of(theirs)(*batch(0)))
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_close(p.grad, q.grad)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_other_backends_run_a_python_loop(backend: str):
    ours, theirs = Net(), Net()
    theirs.load_state_dict(ours.state_dict())

    @torch.compile(backend=backend)
    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return zc.microbatches(backward_of(ours), 4, x, y, reduce="mean")

    assert_close(step(*batch(0)), backward_of(theirs)(*batch(0)))
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_close(p.grad, q.grad)


def test_a_compiled_model_in_an_uncompiled_step():
    ours, theirs = Net(), Net()
    theirs.load_state_dict(ours.state_dict())
    ours.compile(backend="zero", options={"executor": "interpret"})
    for number in range(2):
        loss = zc.microbatches(backward_of(ours), 4, *batch(number), reduce="mean")
        assert_close(loss, backward_of(theirs)(*batch(number)))
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_close(p.grad, q.grad)


def test_a_gradient_given_to_backward_is_weighed_too():
    weight, other = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))

    def loss_of(x: torch.Tensor) -> torch.Tensor:
        out = x * weight
        out.backward(torch.full_like(out, 3.0))
        return out.detach().sum()

    zc.microbatches(loss_of, 4, torch.ones(4, 4), reduce="mean")
    (torch.ones(4) * other).backward(torch.full((4,), 3.0))
    assert weight.grad is not None
    assert torch.equal(weight.grad, other.grad)
