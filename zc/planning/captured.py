"""Plans from programs: the step is captured for any number of ranks, passed and simulated.

Nothing is allocated: the model is built on the meta device and captured with tensors that have a
type and no memory. They are typed as on CPUs, so a reduce-scatter counts the room that it needs
there to receive in (``zc.program.collectives.receive_bytes``).
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

import zc
from zc.cost.advice import peak_point
from zc.cost.makeup import makeup
from zc.cost.simulate import simulate
from zc.errors import CaptureError, PipelineError
from zc.pipelines.manager import run_passes
from zc.pipelines.pipeline import PassPipeline
from zc.planning.models import Subject
from zc.planning.rows import Row
from zc.program.collectives import collectives_of
from zc.program.copying import copy_program
from zc.program.program import Program
from zc.text import show_bytes
from zc.torch_private import fake_world, without_memory

RATE = 1e-4  # of the optimizer; of no matter to costs


@dataclass(frozen=True)
class Setting:
    """How the model trains: ranks, sequences for each, tokens in a sequence, compute dtype."""

    world: int
    batch: int = 1
    sequence: int = 128
    param_dtype: torch.dtype | None = None


def captured_rows(
    subject: Subject, setting: Setting, pipelines: Sequence[PassPipeline], device: str
) -> list[Row]:
    """One row for each of ``pipelines``, all made from one capture, or from two.

    A pass pipeline of zero_stage 0 sees the model as it is, others see it sharded.

    Raises:
        CaptureError: when the model cannot be built or captured.
    """
    found = []
    for sharded in (False, True):
        mine = [p for p in pipelines if _shards(p) is sharded]
        if mine:
            logical = capture_step(subject, setting, sharded=sharded)
            found += [_row(logical, replace(p, device=device), setting.world) for p in mine]
    return found


def capture_step(subject: Subject, setting: Setting, *, sharded: bool) -> Program:
    """The logical program of a whole training step with AdamW on ``setting.world`` ranks.

    Raises:
        CaptureError: when the model cannot be built or captured.
    """
    with fake_world(setting.world), _quiet():
        model = _build(subject)
        if sharded:
            zc.shard(model, param_dtype=setting.param_dtype)
        with without_memory():
            zc.materialize(model, "cpu")
            inputs = subject.inputs(model, setting.batch, setting.sequence)
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)

        def step(*batch: torch.Tensor) -> torch.Tensor:
            loss = subject.loss(model, batch)
            loss.backward()
            zc.step(optimizer)
            return loss.detach()

        try:
            return zc.capture(step, *inputs)
        except (RuntimeError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CaptureError(
                f"{subject.name}: cannot be captured with inputs "
                f"{[tuple(x.shape) for x in inputs]}: {reason}"
            ) from error


def _build(subject: Subject) -> nn.Module:
    with torch.device("meta"):
        model: Any = subject.build()
    if not isinstance(model, nn.Module):
        raise CaptureError(
            f"{subject.name}: returned {type(model).__name__}; return the torch.nn.Module to train"
        )
    return model


def _row(logical: Program, pipeline: PassPipeline, world: int) -> Row:
    program = copy_program(logical)
    try:
        run_passes(program, replace(pipeline, memory_cap=None))
    except PipelineError as error:
        return Row(world, pipeline.name, refused=str(error))
    assert program.device is not None
    point = peak_point(program)
    timeline = simulate(program, program.device, fused=pipeline.executor == "inductor")
    return Row(
        world=world,
        pipeline=pipeline.name,
        peak_bytes=point.live_bytes,
        step_seconds=timeline.seconds,
        best_seconds=max(timeline.lane_seconds.values(), default=0.0),
        exposed_seconds=timeline.exposed_seconds,
        sent_bytes=sum(row.times * row.wire_bytes for row in collectives_of(program)),
        kinds=tuple(f"{k.name} {show_bytes(k.nbytes)}" for k in makeup(program, point)),
        where=f"%{point.node.name}",
    )


def _shards(pipeline: PassPipeline) -> bool:
    return all(getattr(item, "zero_stage", 3) > 0 for item in pipeline.passes)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
