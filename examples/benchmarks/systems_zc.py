"""Systems of zc: a level and a pass pipeline, which together are the system's name.

    zc level 2, zero3                                   a built-in pass pipeline
    zc level 1, examples/pipelines/zero3_persist.yaml   a file
    zc level 2, zero3 without clean_graph               one pass taken out

Level 1 compiles the model, and the optimizer's step by itself; level 2 compiles forward, backward
and update as one step. Stage 0 trains a replicated model, the others one of ``zc.shard``.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from systems import GPT, SETTINGS, Builder, Step, Trained, around, stepping

import zc
from zc.errors import PipelineError
from zc.pipelines.pipeline import PassPipeline

DEFAULT_REFERENCE = "zc level 2, zero3"
_NAME = re.compile(r"zc level (?P<level>[12]), (?P<spec>\S+)( without (?P<removed>\w+))?")


def name_of(level: int, spec: str) -> str:
    """The name of the system that trains at ``level`` under the pass pipeline ``spec``."""
    return f"zc level {level}, {spec}"


def builder_of(name: str) -> Builder | None:
    """What builds the system called ``name``; ``None`` where the name is of no such form.

    Raises:
        PipelineError: for a pass pipeline that cannot be read.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    pipeline = PassPipeline.resolve(found["spec"])
    if found["removed"]:
        pipeline = without(pipeline, found["removed"])
    return _builder(int(found["level"]), pipeline)


def ablations(level: int, spec: str) -> Iterator[tuple[str, str | None]]:
    """For each pass that ``spec`` can do without, a system's name, and why it cannot be built.

    Raises:
        PipelineError: for a pass pipeline that cannot be read.
    """
    pipeline = PassPipeline.resolve(spec)
    for removed in dict.fromkeys(p.name for p in pipeline.passes if p.kind != "required"):
        name = f"{name_of(level, spec)} without {removed}"
        try:
            without(pipeline, removed)
        except PipelineError as error:
            yield name, str(error)
        else:
            yield name, None


def without(pipeline: PassPipeline, removed: str) -> PassPipeline:
    """``pipeline`` without the passes called ``removed``.

    Raises:
        PipelineError: where it has no such pass, or a later pass needs it.
    """
    kept = tuple(p for p in pipeline.passes if p.name != removed)
    if len(kept) == len(pipeline.passes):
        raise PipelineError(f"pass pipeline '{pipeline.name}' has no pass '{removed}'")
    return replace(pipeline, name=f"{pipeline.name} without {removed}", passes=kept, spelled=())


def _builder(level: int, pipeline: PassPipeline) -> Builder:
    def build(model: GPT, executor: str) -> Trained:
        if any(getattr(item, "zero_stage", 0) for item in pipeline.passes):
            zc.shard(model)
        options = {"passes": pipeline, "executor": executor}
        optimizer = torch.optim.AdamW(model.parameters(), **SETTINGS)
        if level == 2:
            return Trained(model, _whole_step(model, optimizer, options))
        optimizer.step = zc.compile_step(optimizer, options)
        return Trained(model, stepping(compile_zc(model, 1, options), optimizer))

    return build


def _whole_step(model: GPT, optimizer: torch.optim.Optimizer, options: dict[str, Any]) -> Step:
    @torch.compile(backend="zero", options=options)
    def step(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = model(tokens, targets)
        loss.backward()
        zc.step(optimizer)
        return loss.detach()

    return step


def compile_zc(model: GPT, level: int, options: dict[str, Any]) -> Step:
    """Forward and backward of ``model`` through the ``zero`` backend."""
    if level == 1:
        return around(torch.compile(model, backend="zero", options=options))
    return torch.compile(around(model), backend="zero", options=options)


NAMES = tuple(name_of(level, f"zero{stage}") for level in (1, 2) for stage in (1, 2, 3))
