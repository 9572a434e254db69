"""``zc.microbatches`` on one process: what comes out, eagerly and compiled."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from state.microbatch_steps import (
    EXECUTORS,
    HALF,
    NORMED,
    Net,
    assert_close,
    backward_of,
    batch,
    run_by,
    values_of,
)
from torch import nn
from torch.utils.checkpoint import checkpoint

import zc

pytestmark = pytest.mark.usefixtures("fresh_compiler")


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_mean_is_one_step_on_the_whole_batch(executor: str, clip: bool):
    ours, theirs = Net(), Net()
    theirs.load_state_dict(ours.state_dict())
    optimizers = [torch.optim.AdamW(m.parameters(), 1e-2, eps=1e-5) for m in (ours, theirs)]

    def finish(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        zc.step(optimizer)

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = zc.microbatches(backward_of(ours), 4, x, y, reduce="mean")
        finish(ours, optimizers[0])
        return loss

    run = run_by(executor, step)
    for number in range(4):
        loss = backward_of(theirs)(*batch(number))
        finish(theirs, optimizers[1])
        assert_close(run(*batch(number)), loss)
    assert_close(values_of(ours), values_of(theirs))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_sum_is_that_of_the_losses_of_all_parts(executor: str):
    ours, theirs = Net(), Net()
    theirs.load_state_dict(ours.state_dict())

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return zc.microbatches(backward_of(ours), 4, x, y, reduce="sum")

    run = run_by(executor, step)
    for number in range(3):  # gradients of the first steps are there at the later ones
        x, y = batch(number)
        parts = [backward_of(theirs)(*part) for part in zip(x.chunk(4), y.chunk(4), strict=True)]
        assert_close(run(x, y), torch.stack(parts).sum())
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert_close(p.grad, q.grad)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("form", [tuple, list, dict])
def test_results_keep_their_form(form: type, executor: str):
    model = Net()

    def numbers(x: torch.Tensor, y: torch.Tensor) -> Any:
        out = model(x)
        loss = F.cross_entropy(out, y)
        loss.backward()
        values = loss, (y >= 0).sum(), torch.tensor(0.25, dtype=torch.bfloat16)
        return dict(zip("abc", values, strict=True)) if form is dict else form(values)

    def step(x: torch.Tensor, y: torch.Tensor) -> Any:
        return zc.microbatches(numbers, 4, x, y, reduce="sum")

    found = run_by(executor, step)(*batch(0))
    assert type(found) is form
    loss, count, quarter = found.values() if isinstance(found, dict) else found
    assert not loss.requires_grad
    assert (count.dtype, count.item()) == (torch.int64, 8)
    assert (quarter.dtype, quarter.item()) == (torch.bfloat16, 1.0)


@pytest.mark.parametrize("executor", ["interpret", "inductor"])
def test_sums_of_many_small_numbers_are_wide(executor: str):
    """256 times 1/256 in bf16 steps of 1/256 ends below 1; in fp32 it does not."""
    weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))

    def loss_of(x: torch.Tensor) -> torch.Tensor:
        loss = (x * weight).sum()
        loss.backward()
        return loss.detach()

    step = run_by(executor, lambda x: zc.microbatches(loss_of, 1024, x, reduce="sum"))
    total = step(torch.full((1024,), 1 / 256, dtype=torch.bfloat16))
    assert (total.dtype, total.item()) == (torch.bfloat16, 4.0)
    assert weight.grad is not None
    assert (weight.grad.dtype, weight.grad.item()) == (torch.bfloat16, 4.0)


@pytest.mark.parametrize("executor", ["interpret", "inductor"])
def test_buffers_go_from_one_micro_batch_to_the_next(executor: str):
    ours, theirs = Net(norm=True), Net(norm=True)
    theirs.load_state_dict(ours.state_dict())
    optimizers = [torch.optim.SGD(m.parameters(), 0.1) for m in (ours, theirs)]

    def step(model: nn.Module, optimizer: Any, x: torch.Tensor, y: torch.Tensor) -> Any:
        loss = zc.microbatches(backward_of(model), 4, x, y, reduce="mean")
        zc.step(optimizer)
        return loss

    run = run_by(executor, lambda x, y: step(ours, optimizers[0], x, y))
    for number in range(3):
        assert_close(run(*batch(number)), step(theirs, optimizers[1], *batch(number)), NORMED)
    assert_close(values_of(ours), values_of(theirs), NORMED)
    assert ours.norm.num_batches_tracked.item() == 12  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("executor", ["interpret", "inductor"])
def test_each_micro_batch_draws_its_own_numbers(executor: str):
    model = Net()

    def loss_of(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        drawn = torch.rand(())
        return drawn, drawn.square()

    run = run_by(executor, lambda x, y: zc.microbatches(loss_of, 4, x, y, reduce="mean"))
    mean, of_squares = run(*batch(0))
    assert of_squares - mean.square() > 0.01  # the variance: 0 if all were one number
    assert run(*batch(0))[0] != mean
    torch.manual_seed(5)
    again = run(*batch(0))
    torch.manual_seed(5)
    assert torch.equal(run(*batch(0))[0], again[0])


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_batch_stays_as_it_was(executor: str):
    weight = nn.Parameter(torch.ones(4))

    def loss_of(x: torch.Tensor) -> torch.Tensor:
        loss = (x.mul_(2) * weight).sum()
        loss.backward()
        return loss.detach()

    run = run_by(executor, lambda x: zc.microbatches(loss_of, 4, x, reduce="sum"))
    x = torch.ones(8, 4)
    assert run(x).item() == 64
    assert torch.equal(x, torch.ones(8, 4))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_autocast_and_checkpoint_in_the_function(executor: str):
    ours, theirs = Net(), Net()
    theirs.load_state_dict(ours.state_dict())

    def loss_of(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out = checkpoint(model, x, use_reentrant=False)
        loss = F.cross_entropy(out.float(), y)  # type: ignore[union-attr]
        loss.backward()
        return loss.detach()

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return zc.microbatches(lambda *part: loss_of(ours, *part), 4, x, y, reduce="mean")

    torch.testing.assert_close(
        run_by(executor, step)(*batch(0)), loss_of(theirs, *batch(0)), rtol=HALF, atol=0
    )
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert (p.grad - q.grad).norm() <= HALF * q.grad.norm()


def test_the_mask_of_backward_is_that_of_forward():
    weight = nn.Parameter(torch.ones(64))

    def loss_of(x: torch.Tensor) -> torch.Tensor:
        loss = F.dropout(x * weight, 0.5).sum()
        loss.backward()
        return loss.detach()

    run = run_by("interpret", lambda x: zc.microbatches(loss_of, 4, x, reduce="sum"))
    loss = run(torch.ones(4, 64))
    assert weight.grad is not None
    assert torch.equal(weight.grad.sum(), loss)
    assert len(weight.grad.unique()) > 2  # 0, 2, 4, 6 or 8: masks differ
