"""Training runs in micro-batches, of one rank, for test_microbatches.py."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from e2e.models import CASES
from torch import nn
from torch.nn.utils import clip_grad_norm_

import zc
from zc.comm.wire import METER

WORLD, COUNT, STEPS = 2, 4, 4
RATE, EPSILON, MAX_NORM = 1e-3, 1e-5, 0.5
Totals = dict[str, int]


@dataclass(frozen=True)
class Case:
    """One way of training one model."""

    model: str
    stage: int
    executor: str = "interpret"


SHORT = [
    *(Case("gpt", stage) for stage in (0, 1, 3)),
    Case("gpt", 2, "inductor"),
    Case("llama", 3),
]
REST = [
    Case("gpt", 2),
    *(Case("llama", stage) for stage in (0, 1, 2)),
    Case("gpt", 3, "inductor"),
    Case("llama", 3, "inductor"),
]


@dataclass(frozen=True)
class Run:
    """Losses, norms and parameters of a training run, and bytes sent in its last step."""

    losses: list[float]
    norms: list[float]
    state: dict[str, torch.Tensor]
    sent: Totals


def rows(model: str, step: int, rank: int) -> torch.Tensor:
    """What one rank reads at one step: two sequences for each micro-batch."""
    parts = [CASES[model].batch(step, 10 * rank + i)[0] for i in range(COUNT)]
    return torch.cat(parts)


def train(
    name: str, model: nn.Module, step: Callable[..., Any], ranks: list[int], **kept: Any
) -> Run:
    """Run ``step`` on the rows of all ``ranks``; it returns loss and norm of the gradients."""
    losses, norms = [], []
    for number in range(STEPS):
        METER.reset()
        loss, norm = step(torch.cat([rows(name, number, rank) for rank in ranks]))
        losses.append(loss.item())
        norms.append((norm.full_tensor() if hasattr(norm, "full_tensor") else norm).item())
    sent = dict(METER.sent)
    state = {k: v.clone() for k, v in zc.full_state_dict(model).items()}
    return Run(losses, norms, state, sent)


def of_model(name: str, stage: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = CASES[name].model()
    if stage:
        zc.shard(model)
    return model, torch.optim.AdamW(model.parameters(), lr=RATE, eps=EPSILON)


def whole_step(name: str, model: nn.Module, optimizer: Any) -> Callable[..., Any]:
    def step(tokens: torch.Tensor) -> Any:
        loss = CASES[name].loss(model, tokens)
        loss.backward()
        norm = clip_grad_norm_(model.parameters(), MAX_NORM)
        zc.step(optimizer)
        return loss.detach(), norm

    return step


def step_in_parts(name: str, model: nn.Module, optimizer: Any, count: int) -> Callable[..., Any]:
    def loss_of(tokens: torch.Tensor) -> torch.Tensor:
        loss = CASES[name].loss(model, tokens)
        loss.backward()
        return loss.detach()

    def step(tokens: torch.Tensor) -> Any:
        loss = zc.microbatches(loss_of, count, tokens, reduce="mean")
        norm = clip_grad_norm_(model.parameters(), MAX_NORM)
        zc.step(optimizer)
        return loss, norm

    return step


def run_case(case: Case, rank: int, folder: str) -> Run:
    torch._dynamo.reset()
    model, optimizer = of_model(case.model, case.stage)
    options = {"passes": f"zero{case.stage}", "executor": case.executor}
    options["dump"] = str(Path(folder, f"{case.model}-{case.stage}-{case.executor}"))
    step = step_in_parts(case.model, model, optimizer, COUNT)
    run = torch.compile(step, backend="zero", options=options)
    return train(case.model, model, run, [rank])


def eager_run(rank: int) -> Run:
    """A sharded model, and no compiler."""
    torch._dynamo.reset()
    model, optimizer = of_model("gpt", 3)
    return train("gpt", model, step_in_parts("gpt", model, optimizer, COUNT), [rank])


def batch_norm(rank: int) -> tuple[list[torch.Tensor], ...]:
    """Gradients of two steps added up, and buffers, of a sharded model: compiled, then not."""
    found = []
    for compiled in (True, False):
        torch._dynamo.reset()
        model = zc.shard(CASES["conv"].model())

        def loss_of(images: torch.Tensor, classes: torch.Tensor, model: Any = model) -> Any:
            loss = CASES["conv"].loss(model, images, classes)
            loss.backward()
            return loss.detach()

        def step(*batch: torch.Tensor, loss_of: Any = loss_of) -> Any:
            return zc.microbatches(loss_of, 2, *batch, reduce="sum")

        options = {"executor": "interpret"}
        run = torch.compile(step, backend="zero", options=options) if compiled else step
        losses = [run(*CASES["conv"].batch(number, rank)) for number in range(2)]
        grads = [p.grad.full_tensor() for p in model.parameters()]  # type: ignore[union-attr]
        found.append([*losses, *grads, *(b.clone() for b in model.buffers())])
    return tuple(found)


def counts_that_differ(rank: int) -> str:
    torch._dynamo.reset()
    model, optimizer = of_model("gpt", 2)
    step = step_in_parts("gpt", model, optimizer, 2 + 2 * rank)
    options = {"passes": "zero2", "executor": "interpret"}
    try:
        torch.compile(step, backend="zero", options=options)(rows("gpt", 0, rank))
    except Exception as error:
        inner = getattr(error, "inner_exception", None) or error
        return f"{type(inner).__name__}: {inner}"
    return "no error"
