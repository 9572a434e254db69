"""Training runs of one model, by zc and by ``DistributedDataParallel`` in eager mode, compared."""

import hashlib
import math
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from e2e.models import CASES, Case
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

import zc

STEPS = 20
RATE = 1e-3
EPSILON = 1e-5
MAX_NORM = 1.0


@dataclass(frozen=True)
class Config:
    """One way of training one model; ``zero0`` leaves the model unsharded."""

    model: str
    world: int
    stage: int
    level: int
    executor: str
    clip: bool


@dataclass(frozen=True)
class Run:
    """A finished training run on one rank; the full state is on rank 0 alone."""

    losses: list[float]
    norms: list[float]
    state: dict[str, torch.Tensor]

    def digest(self) -> str:
        """Equal for runs whose losses and parameters are the same bits."""
        found = hashlib.sha256(repr(self.losses).encode())
        for name, value in sorted(self.state.items()):
            found.update(name.encode() + value.contiguous().numpy().tobytes())
        return found.hexdigest()


@dataclass(frozen=True)
class Deviation:
    """How far one run on one rank is from ``DistributedDataParallel``, or why it failed.

    ``loss`` and ``norm`` are the largest relative differences over the steps; ``state`` is the
    largest ``||delta|| / (1e-5 ||p|| + 1e-2 lr sqrt(numel))`` over parameters and buffers.
    """

    config: Config
    loss: float = math.inf
    state: float = math.inf
    norm: float = math.inf
    digest: str = ""
    error: str = ""


def compare(rank: int, world: int, configs: list[Config]) -> list[Deviation]:
    """Train in each of ``configs``, which all have this ``world``, and compare with DDP.

    Configurations that differ in clipping alone share one compilation: clipping is eager code.
    """
    found = []
    for name, of_model in groupby(configs, lambda c: c.model):
        case = CASES[name]
        references: dict[bool, Run] = {}
        for _, group in groupby(of_model, lambda c: (c.stage, c.level, c.executor)):
            found += _compare_compiled(case, list(group), references, rank)
    return found


def _compare_compiled(
    case: Case, group: list[Config], references: dict[bool, Run], rank: int
) -> list[Deviation]:
    found = []
    try:
        for config, run in zip(group, train_compiled(case, group, rank), strict=True):
            if config.clip not in references:
                references[config.clip] = train_reference(case, config.clip, rank)
            found.append(_deviation(config, run, references[config.clip]))
    except Exception:  # every rank meets the same error; the others configurations go on
        error = traceback.format_exc()
        found += [Deviation(config, error=error) for config in group[len(found) :]]
    return found


def train_reference(case: Case, clip: bool, rank: int) -> Run:
    """``DistributedDataParallel`` in eager mode; buffers stay local, as in zc."""
    model = DistributedDataParallel(case.model(), broadcast_buffers=False)

    def step(*batch: torch.Tensor) -> torch.Tensor:
        loss = case.loss(model, *batch)
        loss.backward()
        return loss.detach()

    return _train(case, model.module, step, clip, rank)


def train_compiled(case: Case, group: Iterable[Config], rank: int) -> Iterable[Run]:
    """One run for each of ``group``, from the same start, with one compiled function."""
    group = list(group)
    torch._dynamo.reset()
    model = case.model()
    if group[0].stage > 0:
        zc.shard(model)
    step = compiled_step(case, model, group[0])
    start = {k: v.detach().clone() for k, v in model.state_dict().items()}
    for config in group:
        with torch.no_grad():
            for name, value in model.state_dict().items():
                value.copy_(start[name])
        yield _train(case, model, step, config.clip, rank)


def compiled_step(
    case: Case, model: nn.Module, config: Config, **options: Any
) -> Callable[..., torch.Tensor]:
    """Forward and backward as ``config`` compiles them; returns the loss."""
    options = {"passes": f"zero{config.stage}", "executor": config.executor, **options}
    if config.level == 1:
        compiled = torch.compile(model, backend="zero", options=options)

        def step(*batch: torch.Tensor) -> torch.Tensor:
            loss = case.loss(compiled, *batch)
            loss.backward()
            return loss.detach()

        return step

    @torch.compile(backend="zero", options=options)
    def whole_step(*batch: torch.Tensor) -> torch.Tensor:
        loss = case.loss(model, *batch)
        loss.backward()
        return loss.detach()

    return whole_step


def _train(
    case: Case, model: nn.Module, step: Callable[..., torch.Tensor], clip: bool, rank: int
) -> Run:
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, eps=EPSILON)
    losses, norms = [], []
    for i in range(STEPS):
        losses.append(step(*case.batch(i, rank)).item())
        if clip:
            norm: Any = clip_grad_norm_(model.parameters(), MAX_NORM)
            norms.append((norm.full_tensor() if hasattr(norm, "full_tensor") else norm).item())
        optimizer.step()
        optimizer.zero_grad()
    state = zc.full_state_dict(model)
    return Run(losses, norms, {k: v.clone() for k, v in state.items()})


def _deviation(config: Config, run: Run, reference: Run) -> Deviation:
    return Deviation(
        config,
        loss=_relative(run.losses, reference.losses),
        state=max((_ratio(v, reference.state[k]) for k, v in run.state.items()), default=0.0),
        norm=_relative(run.norms, reference.norms),
        digest=run.digest(),
    )


def _relative(ours: list[float], theirs: list[float]) -> float:
    return max((abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True)), default=0.0)


def _ratio(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    if not ours.is_floating_point():
        return 0.0 if torch.equal(ours, theirs) else math.inf
    allowed = 1e-5 * theirs.norm() + 1e-2 * RATE * math.sqrt(theirs.numel())
    return ((ours - theirs).norm() / allowed).item()
