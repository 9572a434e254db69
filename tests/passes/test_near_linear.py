"""Passes and their manager take near-linear work in the nodes, counted in calls, not in seconds.

Every call that Python makes is counted, of functions and of methods written in C. Four times the
layers make a linear pass call four times as much, a quadratic one up to sixteen times. All gathers
of a phase, and all reductions, fit into one bucket: what goes through a bucket for each of its
items is quadratic here.
"""

import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from overlap import DEVICE
from tracing import physical, program_of
from update.optimizers import of
from update.step_programs import step_program
from zc.passes.bucket_collectives import BucketCollectives
from zc.passes.cast_in_update import CastInUpdate
from zc.passes.clean_graph import CleanGraph
from zc.passes.delay_reductions import DelayReductions
from zc.passes.keep_gathered import KeepGathered
from zc.passes.merge_common import MergeCommon
from zc.passes.prefetch_gathers import PrefetchGathers
from zc.passes.quantize_moments import QuantizeMoments
from zc.passes.recompute_pointwise import RecomputePointwise
from zc.passes.shard_params import ShardParams
from zc.passes.shard_update import ShardUpdate

from zc.pipelines.manager import run_passes
from zc.pipelines.pipeline import PassPipeline
from zc.program.copying import copy_program
from zc.program.pass_base import Pass
from zc.program.program import Program
from zc.program.units import Bytes

FEW, MANY = 16, 64
RATIO = 4.6  # of the calls for MANY layers to those for FEW: 4 is linear, trees add logarithms
ROOM = Bytes("1MB")  # for all parameters to be kept gathered
SCHEDULING = [KeepGathered(memory=ROOM), PrefetchGathers(memory=ROOM), DelayReductions(memory=ROOM)]
REWRITING = [CleanGraph(), MergeCommon(), RecomputePointwise(smallest=Bytes(0))]


@cache
def logical(layers: int) -> Program:
    """A network of ``layers`` weights, each with a pointwise chain behind it."""

    def loss(p: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
        value = x["x"]
        for weight in p.values():
            value = torch.tanh(value @ weight).exp()
        return value.sum()

    return program_of(loss, {f"w{i}": (8, 8) for i in range(layers)}, {"x": (4, 8)}, 2)


@cache
def sharded(layers: int) -> Program:
    """The same under stage 3, on a device where collectives and ops take as long as each other."""
    program = physical(copy_program(logical(layers)), 3)
    program.device = DEVICE
    return program


@cache
def bucketed(layers: int) -> Program:
    """The same with one bucket of gathers in each phase, and one of reductions."""
    program = copy_program(sharded(layers))
    BucketCollectives().run(program)
    return program


@cache
def updated(layers: int) -> Program:
    """A step that casts all of its parameters, with an update by AdamW."""

    def loss(p: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
        value = x["x"].bfloat16()
        for weight in p.values():
            value = torch.tanh(value @ weight.bfloat16())
        return value.float().sum()

    shapes = {f"w{i}": (8, 8) for i in range(layers)}
    kinds: Any = {"world": 2, "sharded": True, "reduce_dtype": torch.bfloat16}
    program = step_program(loss, shapes, {"x": (4, 8)}, of("AdamW", lr=0.1), **kinds)
    ShardParams().run(program)
    return program


@cache
def inlined(layers: int) -> Program:
    """The same with the arithmetic of the optimizer in place."""
    program = copy_program(updated(layers))
    ShardUpdate().run(program)
    return program


def calls_in(run: Callable[[], Any]) -> int:
    """How many calls ``run`` makes."""
    count = 0

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(before)
    return count


def growth(build: Callable[[int], Program], run: Callable[[Program], Any]) -> float:
    """How many times the calls for ``FEW`` layers ``run`` makes for ``MANY``."""
    for layers in (FEW, MANY):  # what is found out about ops is kept with the program
        run(copy_program(build(layers)))
    few, many = (copy_program(build(layers)) for layers in (FEW, MANY))
    return calls_in(lambda: run(many)) / calls_in(lambda: run(few))


@pytest.mark.parametrize("build", [sharded, bucketed])
@pytest.mark.parametrize("item", [*SCHEDULING, *REWRITING], ids=lambda item: item.name)
def test_a_pass(item: Pass, build: Callable[[int], Program]):
    assert growth(build, item.run) <= RATIO


@pytest.mark.parametrize("item", [BucketCollectives()], ids=lambda item: item.name)
def test_a_pass_that_makes_buckets(item: Pass):
    assert growth(sharded, item.run) <= RATIO


def test_shard_update():
    assert growth(updated, ShardUpdate().run) <= RATIO


@pytest.mark.parametrize("item", [CastInUpdate(), QuantizeMoments(smallest=0)], ids=str)
def test_a_pass_that_makes_inputs(item: Pass, monkeypatch: pytest.MonkeyPatch):
    assert growth(inlined, item.run) <= RATIO
    listed: list[Program] = []
    placeholders = Program.placeholders

    def counted(program: Program, kind: str | None = None) -> list[Any]:
        listed.append(program)
        return placeholders(program, kind)

    monkeypatch.setattr(Program, "placeholders", counted)
    item.run(copy_program(inlined(MANY)))
    assert len(listed) < 5  # each is as long as there are inputs, in one call


def test_the_manager_with_all_passes_and_checks():
    passes = (ShardParams(), *REWRITING, BucketCollectives(), *SCHEDULING)
    pipeline = PassPipeline("all", "interpret", passes)
    assert growth(logical, lambda program: run_passes(program, pipeline)) <= RATIO


def test_quadratic_work_is_told():
    def quadratic(program: Program) -> None:
        for _ in program.nodes():
            sum(map(len, [node.name for node in program.nodes()]))

    assert growth(sharded, quadratic) > 2 * RATIO
