"""The error about the memory cap: what the peak consists of, and ways under it."""

from dataclasses import replace

import pytest
import torch
from tracing import program_of

from zc.cost import advice
from zc.cost.advice import peak_point
from zc.cost.makeup import makeup
from zc.errors import CapError
from zc.pipelines.alternatives import alternatives
from zc.pipelines.manager import run_passes
from zc.pipelines.pipeline import PassPipeline
from zc.program.copying import copy_program
from zc.program.liveness import memory_timeline
from zc.program.program import Program
from zc.program.units import Bytes

LAYERS = 4


def chain(sharded: bool = True) -> Program:
    shapes = {f"w{i}": (32, 32) for i in range(LAYERS)}

    def loss(p: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
        h = x["x"]
        for name in shapes:
            h = torch.tanh(h @ p[name])
        return h.sum()

    program = program_of(loss, shapes, {"x": (16, 32)}, sharded=sharded)
    for name, param in program.params.items():
        program.params[name] = replace(param, managed=sharded)
    return program


def pipeline(zero_stage: int, cap: int | None = None) -> PassPipeline:
    made = PassPipeline.from_list([{"shard_params": {"zero_stage": zero_stage}}, "clean_graph"])
    return replace(made, executor="interpret", memory_cap=None if cap is None else Bytes(cap))


def peak_of(zero_stage: int) -> int:
    program = chain(sharded=zero_stage > 0)
    run_passes(program, pipeline(zero_stage))
    return peak_point(program).live_bytes


def refusal(zero_stage: int, cap: int) -> str:
    with pytest.raises(CapError) as caught:
        run_passes(chain(sharded=zero_stage > 0), pipeline(zero_stage, cap))
    return str(caught.value) + "\n"


def test_a_peak_above_the_cap_is_explained(golden):
    golden(refusal(1, peak_of(3)))


def test_a_model_that_is_not_sharded_is_told_to_be(golden):
    golden(refusal(0, peak_of(3)))


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_kinds_add_up_everywhere(zero_stage: int):
    program = chain(sharded=zero_stage > 0)
    run_passes(program, pipeline(zero_stage))
    for point in memory_timeline(program.graph):
        assert sum(kind.nbytes for kind in makeup(program, point)) == point.live_bytes


def test_a_way_that_fits_is_no_empty_promise():
    cap = peak_of(3)
    (line,) = [x for x in refusal(1, cap).splitlines() if "zero_stage: 3" in x]
    assert line.strip().startswith(f"shard_params {{zero_stage: 3}}: peak {cap} bytes (")
    assert line.endswith("; fits")
    run_passes(chain(), pipeline(3, cap))


def test_large_programs_are_not_tried(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(advice, "TRIED_UP_TO", 10)
    text = refusal(1, peak_of(3))
    assert "zero_stage: 3" not in text
    assert "zc.microbatches with 2 micro-batches" in text


def test_the_captured_program_is_left_alone():
    program = chain()
    before = str(program)
    other = copy_program(program)
    with pytest.raises(CapError):
        run_passes(other, pipeline(1, 1))
    assert str(program) == before


def test_alternatives_fit_together():
    passes = PassPipeline.from_list(
        [{"shard_params": {"zero_stage": 1, "persist_below": "100KB"}}, "shard_update",
         {"fuse_update": {"bucket_bytes": "1MB"}}, "clean_graph", "lower_update"]
    ).passes  # fmt: skip
    texts = [text for text, _ in alternatives(passes)]
    assert texts[:4] == [
        "shard_params {zero_stage: 2}",
        "shard_params {zero_stage: 3}",
        "shard_params {persist_below: 25KB}",
        "fuse_update {bucket_bytes: 250KB}",
    ]
    assert "without fuse_update" in texts
    assert "with fuse_update" not in texts
    fewer = PassPipeline.from_list(["shard_params", "shard_update"]).passes
    assert "with fuse_update" in [text for text, _ in alternatives(fewer)]
