"""Training runs with and without buckets, of one rank, for test_buckets.py."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from update.optimizers import Awkward

import zc
from zc.capture.session import Session
from zc.comm.wire import METER
from zc.program.collectives import collectives_of
from zc.program.program import Program

STEPS, MICRO = 2, 2
Passes = list[Any]


def batch(step: int, rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(4 * MICRO, 7, generator=generator)


@dataclass
class Run:
    """What a training run leaves, what it sent in all, and the collectives of its first program."""

    losses: list[float]
    state: dict[str, torch.Tensor]
    sent: dict[str, int]
    collectives: int


@contextmanager
def programs() -> Iterator[list[Program]]:
    found: list[Program] = []
    with patch.object(Session, "finished", lambda _, program: found.append(program)):
        yield found


def train(way: str, stage: int, buckets: Passes, rank: int) -> Run:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model: Any = Awkward()
    if stage:
        zc.shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    passes: Passes = [{"shard_params": {"zero_stage": stage}}]
    passes += ["shard_update", *buckets, "fuse_update"] if way == "fused" else buckets
    options = {"passes": passes, "executor": "interpret"}
    METER.reset()
    with programs() as found:
        step = STEP_OF[way](model, optimizer, options)
        losses = [step(batch(number, rank)).item() for number in range(STEPS)]
    state = {k: v.clone() for k, v in zc.full_state_dict(model).items()}
    count = len(list(collectives_of(found[0])))
    return Run(losses, state, dict(METER.sent), count)


Step = Callable[[torch.Tensor], torch.Tensor]


def level_1(model: nn.Module, optimizer: Any, options: dict[str, Any]) -> Step:
    compiled = torch.compile(model, backend="zero", options=options)

    def step(x: torch.Tensor) -> torch.Tensor:
        loss = compiled(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def level_2(model: nn.Module, optimizer: Any, options: dict[str, Any]) -> Step:
    """Gradients of two steps add up before the optimizer is called."""

    @torch.compile(backend="zero", options=options)
    def backward(x: torch.Tensor) -> torch.Tensor:
        loss = model(x).square().mean()
        loss.backward()
        return loss.detach()

    def step(x: torch.Tensor) -> torch.Tensor:
        loss = backward(x)
        backward(x + 1)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def fused(model: nn.Module, optimizer: Any, options: dict[str, Any]) -> Step:
    @torch.compile(backend="zero", options=options)
    def step(x: torch.Tensor) -> torch.Tensor:
        loss = model(x).square().mean()
        loss.backward()
        zc.step(optimizer)
        return loss.detach()

    return step


def in_parts(model: nn.Module, optimizer: Any, options: dict[str, Any]) -> Step:
    def part(x: torch.Tensor) -> torch.Tensor:
        loss = model(x).square().mean()
        loss.backward()
        return loss.detach()

    @torch.compile(backend="zero", options=options)
    def step(x: torch.Tensor) -> torch.Tensor:
        return zc.microbatches(part, MICRO, x, reduce="mean")

    def stepping(x: torch.Tensor) -> torch.Tensor:
        loss = step(x)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return stepping


def no_sync(model: nn.Module, optimizer: Any, options: dict[str, Any]) -> Step:
    compiled = torch.compile(model, backend="zero", options=options)

    def step(x: torch.Tensor) -> torch.Tensor:
        losses = []
        for number, part in enumerate(x.chunk(MICRO)):
            with zc.no_sync(model) if number + 1 < MICRO else nullcontext():
                loss = compiled(part).square().mean()
                loss.backward()
                losses.append(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
        return torch.stack(losses).mean()

    return step


STEP_OF = {
    "level 1": level_1,
    "level 2": level_2,
    "fused": fused,
    "micro-batches": in_parts,
    "no_sync": no_sync,
}
