"""shard_params and loops over micro-batches: where each stage gathers and reduces; the values."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from random_losses import assert_same_bits
from tracing import Shapes, physical, program_of, random_inputs
from zc.passes.clean_graph import CleanGraph

from zc.program.collectives import collectives_of
from zc.program.liveness import peak_bytes
from zc.program.loops import ACCUMULATOR, loop_by_node
from zc.program.nodes import value_of
from zc.program.program import Program
from zc.program.units import Bytes
from zc.run.lockstep import lockstep
from zc.verify import communication_plan, verify

Tensors = dict[str, torch.Tensor]
PARAMS: Shapes = {"w0": (32, 8), "b": (3,), "w1": (32, 5)}
ROUNDING = 1e-5  # relative: sums over ranks and micro-batches are added in another order


def loss(p: Tensors, x: Tensors) -> torch.Tensor:
    hidden = torch.tanh(x["x"].to(p["w0"].dtype) @ p["w0"].t()) @ p["w1"]
    return (hidden[:, :3] + p["b"]).float().square().mean()


def looped(count: int = 2, **options: Any) -> Program:
    return program_of(loss, PARAMS, {"x": (8, 8)}, count=count, **options)


def moved(program: Program) -> list[tuple[str, str, int]]:
    """Operation, parameter and number of calls of each collective."""
    return [(c.spec.op, c.stamp.param, c.times) for c in collectives_of(program)]


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_stage(zero_stage: int, golden: Callable[..., None]):
    program = physical(looped(sharded=zero_stage > 0), zero_stage)
    verify(program)
    golden(str(program), ".ir")


def test_stage_0_reduces_once():
    program = physical(looped(sharded=False), 0)
    assert moved(program) == [("all_reduce", name, 1) for name in ("w1", "b", "w0")]


def test_stage_1_gathers_once_and_reduces_once():
    gathers, reductions = ["w0", "w1"], ["w1", "w0"]
    assert [m for m in moved(physical(looped(4), 1)) if m[1] != "b"] == [
        *(("all_gather", name, 1) for name in gathers),
        *(("reduce_scatter", name, 1) for name in reductions),
    ]


def test_stage_2_gathers_once_and_reduces_each_time():
    gathers, reductions = ["w0", "w1"], ["w1", "w0"]
    assert [m for m in moved(physical(looped(4), 2)) if m[1] != "b"] == [
        *(("all_gather", name, 1) for name in gathers),
        *(("reduce_scatter", name, 4) for name in reductions),
    ]


def test_stage_3_does_all_in_the_loop():
    program = physical(looped(4), 3)
    assert {m for m in moved(program) if m[1] != "b"} == {
        *(("all_gather", name, 4) for name in ("w0", "w1")),
        *(("reduce_scatter", name, 4) for name in ("w0", "w1")),
    }
    inside = loop_by_node(program.graph)
    assert all(c.node in inside for c in collectives_of(program) if c.stamp.param != "b")


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_what_every_rank_keeps_whole_is_reduced_once(zero_stage: int):
    assert ("all_reduce", "b", 1) in moved(physical(looped(4), zero_stage))


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_what_nothing_reads_is_not_gathered(zero_stage: int, count: int):
    params = PARAMS | {"idle": (32, 8)}
    options: dict[str, Any] = {"count": count, "sharded": zero_stage > 0}
    options["compute_dtype"] = torch.bfloat16  # the cast goes too
    program = physical(program_of(loss, params, {"x": (8, 8)}, **options), zero_stage)
    verify(program)
    (idle,) = (node for node in program.placeholders() if node.name == "idle")
    assert not idle.users


@pytest.mark.parametrize("zero_stage", [1, 2])
def test_sums_are_wide(zero_stage: int):
    dtypes = {"compute_dtype": torch.bfloat16, "reduce_dtype": torch.bfloat16}
    program = physical(looped(**dtypes), zero_stage)
    verify(program)
    sums = program.graph.find_nodes(op="call_function", target=ACCUMULATOR)
    assert {value_of(node).dtype for node in sums} == {torch.float32}
    reduced = [c for c in collectives_of(program) if c.spec.lane == "reduce"]
    assert {value_of(c.node).dtype for c in reduced} == {torch.bfloat16}


def test_the_plan_says_how_often():
    entries = [str(entry) for entry in communication_plan(physical(looped(4), 2))]
    assert "backward reduce_scatter f32[256] on dp of 'w0' 4 times" in entries
    assert "forward all_gather f32[256] on dp of 'w0'" in entries


def test_programs_of_all_counts_are_of_one_size():
    sizes = {len(physical(looped(count), 3).graph.nodes) for count in (1, 2, 8)}
    assert len(sizes) == 1


def test_activations_of_one_micro_batch_at_a_time():
    """256 rows: activations outweigh parameters, and each micro-batch has a quarter of them."""

    def peak(count: int) -> int:
        program = program_of(loss, PARAMS, {"x": (256, 8)}, count=count)
        return peak_bytes(physical(program, 3).graph) - 256 * 8 * 4

    assert peak(4) < 0.3 * peak(1)


@settings(max_examples=12, phases=(Phase.explicit, Phase.generate))
@given(
    zero_stage=st.sampled_from([0, 1, 2, 3]),
    count=st.sampled_from([1, 2, 4]),
    world=st.sampled_from([1, 2, 3]),
    persist=st.booleans(),
    seed=st.integers(0, 99),
)
def test_stages_mean_the_logical_program(
    zero_stage: int, count: int, world: int, persist: bool, seed: int
):
    """And that means one step on the whole batch; clean_graph changes no bit of it."""
    whole = program_of(loss, PARAMS, {"x": (8, 8)}, world, sharded=zero_stage > 0)
    program = looped(count, world=world, sharded=zero_stage > 0)
    inputs = random_inputs(program, {"x": (8, 8)}, seed)
    expected = lockstep(whole, inputs)
    logical = lockstep(program, inputs)
    physical(program, zero_stage, persist_below=Bytes(200 if persist else 0))
    verify(program)
    found = lockstep(program, inputs)
    for values in (logical, found):
        for mine, wanted in zip(values, expected, strict=True):
            for a, b in zip(mine, wanted, strict=True):
                torch.testing.assert_close(a, b, rtol=ROUNDING, atol=ROUNDING)
    CleanGraph().run(program)
    verify(program)
    assert_same_bits(lockstep(program, inputs), found)
