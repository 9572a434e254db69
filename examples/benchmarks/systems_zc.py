"""Systems of zc: a level and a pass pipeline, which together are the system's name.

    zc level 2, zero3                                   a built-in pass pipeline
    zc level 1, examples/pipelines/zero3_persist.yaml   a file
    zc level 2, zero3 without clean_graph               one pass taken out

Level 1 compiles the model, and the optimizer's step by itself; level 2 compiles forward, backward
and update as one step. Stage 0 trains a replicated model, the others one of ``zc.shard``. Where a
pass pipeline casts parameters or rounds stochastically, the model is in mixed precision or all in
bf16, with and without the pass.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from systems import GPT, SETTINGS, Builder, Step, Trained, around, stepping

import zc
from zc.errors import PipelineError
from zc.pipelines.pipeline import PassPipeline

DEFAULT_REFERENCE = "zc level 2, zero3"
_ROUNDING = {"cast_in_update", "quantize_moments", "round_stochastically"}
_NAME = re.compile(r"zc level (?P<level>[12]), (?P<spec>\S+)( without (?P<removed>\w+))?")


def name_of(level: int, spec: str, removed: str | None = None) -> str:
    """The name of the system that trains at ``level`` under ``spec``, with one pass taken out."""
    return f"zc level {level}, {spec}" + (f" without {removed}" if removed else "")


def builder_of(name: str) -> Builder | None:
    """What builds the system called ``name``; ``None`` where the name is of no such form.

    Raises:
        PipelineError: for a pass pipeline that cannot be read.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    whole = pipeline = PassPipeline.resolve(found["spec"])
    if found["removed"]:
        pipeline = without(pipeline, found["removed"])
    return _builder(int(found["level"]), pipeline, preparing(whole))


def is_rounded(name: str) -> bool:
    """Whether the system called ``name`` keeps numbers in less than 32 bits."""
    found = _NAME.fullmatch(name)
    return found is not None and not _ROUNDING.isdisjoint(_passes(found["spec"]))


def ablations(spec: str) -> Iterator[tuple[str, str | None]]:
    """The passes that can be taken out of ``spec``, and where one cannot, why.

    Raises:
        PipelineError: for a pass pipeline that cannot be read.
    """
    pipeline = PassPipeline.resolve(spec)
    for removed in dict.fromkeys(p.name for p in pipeline.passes if p.kind != "required"):
        try:
            without(pipeline, removed)
        except PipelineError as error:
            yield removed, str(error)
        else:
            yield removed, None


def without(pipeline: PassPipeline, removed: str) -> PassPipeline:
    """``pipeline`` without the passes called ``removed``.

    Raises:
        PipelineError: where it has no such pass, or a later pass needs it.
    """
    kept = tuple(p for p in pipeline.passes if p.name != removed)
    if len(kept) == len(pipeline.passes):
        raise PipelineError(f"pass pipeline '{pipeline.name}' has no pass '{removed}'")
    return replace(pipeline, name=f"{pipeline.name} without {removed}", passes=kept, spelled=())


def _passes(spec: str) -> set[str]:
    return {item.name for item in PassPipeline.resolve(spec).passes}


def preparing(pipeline: PassPipeline) -> Callable[[GPT], None]:
    """What a model needs before ``pipeline`` trains it, with all its passes."""
    names = {item.name for item in pipeline.passes}
    sharded = any(getattr(item, "zero_stage", 0) for item in pipeline.passes)

    def prepare(model: GPT) -> None:
        if "round_stochastically" in names:
            model.to(torch.bfloat16)
        if sharded:
            zc.shard(model, param_dtype=torch.bfloat16 if "cast_in_update" in names else None)

    return prepare


def _builder(level: int, pipeline: PassPipeline, prepare: Callable[[GPT], None]) -> Builder:
    def build(model: GPT, executor: str) -> Trained:
        prepare(model)
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
