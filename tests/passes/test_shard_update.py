"""``shard_update``: what it inserts, the bits that it leaves, and what it refuses."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from multiprocess import fake_world
from update.lockstep_update import SimulatedRanks
from update.optimizers import ELEMENTWISE, WHOLE, of

import zc
from zc.program.collectives import collectives_of

SHAPES: list[tuple[int, ...]] = [(), (0,), (1,), (5,), (7, 3), (16, 4), (2, 3, 2), (4, 0)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
NO_SHRINKING = (Phase.explicit, Phase.generate)  # a step takes a tenth of a second
LOW = 1e-6  # relative and absolute; reductions are summed shard by shard
GOLDEN: dict[str, tuple[Any, tuple[int, ...], int]] = {
    "sgd": (of("SGD", lr=0.1), (8, 4), 4),
    "adamw": (of("AdamW"), (8, 4), 4),
    "uneven": (of("SGD", lr=0.1, momentum=0.9), (5, 3), 4),
    "adafactor": (of("Adafactor"), (32, 4), 2),
    "muon": (of("Muon", ns_steps=1), (32, 4), 2),
    "one_process": (of("AdamW"), (8, 4), 1),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_program(name: str, golden: Callable[..., None]):
    make, shape, world = GOLDEN[name]
    ranks = SimulatedRanks(world, [torch.zeros(shape)], make)
    golden(str(ranks.program()[0]))


def steps_alike(
    make: Any, values: list[torch.Tensor], world: int, steps: int = 4
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Parameters after some steps on simulated ranks, beside those of the eager optimizer."""
    ranks = SimulatedRanks(world, values, make)
    eager = [torch.nn.Parameter(value.clone()) for value in values]
    optimizer = make(eager)
    for _ in range(steps):
        grads = [torch.randn(p.shape).to(p.dtype) for p in eager]
        for param, grad in zip(eager, grads, strict=True):
            param.grad = grad.clone()
        optimizer.step()
        ranks.step(grads)
    return [(p.detach(), q.detach()) for p, q in zip(ranks.whole, eager, strict=True)]


@settings(max_examples=40, phases=NO_SHRINKING)
@given(
    st.sampled_from(sorted(ELEMENTWISE)),
    st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3),
    st.sampled_from(DTYPES),
    st.sampled_from([1, 2, 3, 4]),
    st.integers(0, 5),
)
def test_elementwise_updates_have_the_bits_of_eager_torch(
    name: str, shapes: list[tuple[int, ...]], dtype: torch.dtype, world: int, seed: int
):
    torch.manual_seed(seed)
    values = [torch.randn(shape).to(dtype) for shape in shapes]
    for ours, theirs in steps_alike(ELEMENTWISE[name], values, world):
        assert torch.equal(ours, theirs)


@settings(max_examples=12, phases=NO_SHRINKING)
@given(
    st.sampled_from(["adafactor", "lamb", "global clip", "by data"]),
    st.lists(st.sampled_from([(5,), (7, 3), (16, 4), (2, 3, 2)]), min_size=1, max_size=3),
    st.sampled_from([1, 2, 3, 4]),
)
def test_updates_that_reduce(name: str, shapes: list[tuple[int, ...]], world: int):
    torch.manual_seed(0)
    values = [torch.randn(shape) for shape in shapes]
    for ours, theirs in steps_alike(WHOLE[name], values, world):
        torch.testing.assert_close(ours, theirs, rtol=LOW, atol=LOW)


@settings(max_examples=8, phases=NO_SHRINKING)
@given(st.floats(1e-4, 1.0), st.floats(0.0, 0.5), st.booleans())
def test_groups_with_their_own_numbers(lr: float, decay: float, amsgrad: bool):
    def make(params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        first, second = params
        groups = [{"params": [first], "lr": lr}, {"params": [second], "weight_decay": decay}]
        return torch.optim.AdamW(groups, lr=0.01, amsgrad=amsgrad)

    torch.manual_seed(0)
    for ours, theirs in steps_alike(make, [torch.randn(5, 3), torch.randn(5, 3)], 2):
        assert torch.equal(ours, theirs)


def test_a_norm_costs_one_number():
    ranks = SimulatedRanks(4, [torch.zeros(64, 4)], WHOLE["lamb"])
    program, _ = ranks.program()
    found = [(c.spec.op, c.payload_bytes) for c in collectives_of(program)]
    assert found == [("all_reduce", 4), ("all_reduce", 4)]


def test_transposed_memory():
    torch.manual_seed(0)
    value = torch.randn(6, 4).t()
    for ours, theirs in steps_alike(ELEMENTWISE["adamw"], [value], 1):
        assert torch.equal(ours, theirs)
        assert ours.stride() == theirs.stride()


def test_a_program_without_an_optimizer_stays():
    with fake_world(2):
        model = zc.shard(torch.nn.Linear(4, 4))
        x = torch.zeros(2, 4)
        with_pass = zc.capture(model, x, passes=["shard_params", "shard_update"])
        without = zc.capture(copy.deepcopy(model), x, passes=["shard_params"])
    assert str(with_pass) == str(without)
