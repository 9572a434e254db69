"""Cleaning and cheap recompute on whole models: predicted memory; the same bits on ranks."""

import copy
import warnings
from typing import Any

import pytest
import torch
from capture.training import loss_of, new_net
from e2e.models import gpt_loss
from multiprocess import fake_world, run_ranks
from torch import nn
from zc.passes.merge_common import MergeCommon
from zc.passes.recompute_pointwise import RecomputePointwise

import zc
from zc.program.liveness import peak_by_phase
from zc.program.program import Program
from zc.program.saved import saved_for_backward
from zc.program.units import Bytes
from zc.verify import verify


def plain(zero_stage: int) -> list[Any]:
    return [{"shard_params": {"zero_stage": zero_stage}}, "shard_update", "clean_graph"]


PLAIN = plain(3)
CHEAP = [*PLAIN, "merge_common", {"recompute_pointwise": {"smallest": 0, "redraw": True}}]
STEPS = 2


def small_gpt() -> nn.Module:
    from gpt import GPT, Config  # type: ignore[import-not-found]

    return GPT(Config(layers=2, heads=4, width=64, context=32))


def captured(level: int, zero_stage: int) -> Program:
    """The program of a small GPT on four ranks, with the weights of norms there in backward."""
    sharding, *others = plain(zero_stage)
    sharding["shard_params"]["persist_vectors"] = True
    with fake_world(4):
        model = zc.shard(small_gpt())
        tokens = torch.zeros(4, 32, dtype=torch.int64)

        def step(tokens: torch.Tensor) -> torch.Tensor:
            loss = gpt_loss(model, tokens)
            loss.backward()
            return loss.detach()

        function = step if level == 2 else lambda tokens: gpt_loss(model, tokens)
        return zc.capture(function, tokens, passes=[sharding, *others])


def saved_bytes(program: Program) -> int:
    return sum(stored.size for stored in saved_for_backward(program))


@pytest.mark.parametrize(("level", "zero_stage"), [(1, 3), (2, 2)])
def test_a_gpt_saves_less_and_peaks_lower(level: int, zero_stage: int) -> None:
    """In each layer gelu, rotated queries and keys, heads put side by side and two norms go."""
    program = captured(level, zero_stage)
    saved, peaks = saved_bytes(program), peak_by_phase(program.graph)
    MergeCommon().run(program)
    RecomputePointwise(smallest=Bytes("1KiB")).run(program)
    verify(program)
    activation = 4 * 31 * 64 * 4  # the last token is a target alone
    last_norm = activation
    assert saved - saved_bytes(program) == 2 * (4 + 2 + 1 + 2) * activation + last_norm
    for phase, peak in peak_by_phase(program.graph).items():
        assert peak <= peaks[phase] - 2 * 6 * activation


def train(model: nn.Module, level: int, passes: Any, rank: int) -> list[torch.Tensor]:
    """Losses and gradients of some steps."""
    torch._dynamo.reset()
    model = zc.shard(copy.deepcopy(model))
    options = {"passes": passes, "executor": "interpret"}
    run: Any = torch.compile(model, backend="zero", options=options) if level == 1 else model

    def step(tokens: torch.Tensor) -> torch.Tensor:
        found = loss_of(run, tokens)
        found.backward()
        return found.detach()

    whole = torch.compile(step, backend="zero", options=options) if level == 2 else step
    losses = []
    for number in range(STEPS):
        torch.manual_seed(100 * number + rank)
        losses.append(whole(torch.randint(0, 32, (3, 5))))
    return [*losses, *(p.grad.to_local() for p in model.parameters())]


def train_both(rank: int, world: int) -> list[tuple[int, bool]]:
    """A block with dropout; whether runs agree, by level."""
    warnings.simplefilter("ignore")
    model, found = new_net(dropout=0.25), []
    for level in (1, 2):
        runs = [train(model, level, passes, rank) for passes in (PLAIN, CHEAP)]
        found.append((level, all(map(torch.equal, *runs))))
    return found


@pytest.mark.timeout(300)
def test_two_ranks_compute_the_same_bits() -> None:
    for found in run_ranks(train_both, 2, timeout=280):
        assert found == [(1, True), (2, True)]
