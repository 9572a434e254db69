"""shard_params: where each stage gathers, releases and reduces, and that no bit changes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_losses import RandomLoss, assert_same_bits, random_losses
from torch import fx
from tracing import Shapes, physical, program_of, random_inputs
from turns import two_turns
from zc.passes.shard_params import ShardParams

from zc.errors import PipelineError
from zc.program.analysis import parameter_sources
from zc.program.collectives import collectives_of, is_collective, is_wait
from zc.program.program import Program
from zc.program.stamps import BACKWARD, FORWARD, stamp_of
from zc.program.units import Bytes
from zc.run.lockstep import lockstep
from zc.verify import verify

MLP: Shapes = {"w0": (32, 8), "w1": (32, 16)}
Tensors = dict[str, torch.Tensor]


def mlp(p: Tensors, x: Tensors) -> torch.Tensor:
    return (torch.relu(x["x"] @ p["w0"].t()) @ p["w1"]).sum()


def mlp_program(**options: Any) -> Program:
    return program_of(mlp, MLP, {"x": (2, 8)}, **options)


def weighted(shape: tuple[int, ...], *, sharded: bool = True) -> Program:
    """A program whose only parameter has ``shape``."""

    def loss(p: Tensors, x: Tensors) -> torch.Tensor:
        return (x["x"] * p["w"]).sum()

    return program_of(loss, {"w": shape}, {"x": shape}, sharded=sharded)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_stage(zero_stage: int, golden: Callable[..., None]):
    program = physical(mlp_program(sharded=zero_stage > 0), zero_stage)
    verify(program)
    golden(str(program), ".ir")


@pytest.mark.parametrize("shape", [(30, 8), (5, 3), (2, 48), (1, 33, 2)], ids=str)
def test_layout(shape: tuple[int, ...], golden: Callable[..., None]):
    """Uneven rows; flat, padded storage; dimension 1; dimension 1 with both."""
    program = physical(weighted(shape), 2)
    verify(program)
    golden(str(program), ".ir")


def test_the_shard_is_cast_before_the_gather(golden: Callable[..., None]):
    def loss(p: Tensors, x: Tensors) -> torch.Tensor:
        return (x["x"].to(torch.bfloat16) @ p["w0"].t()).float().sum()

    program = program_of(
        loss, {"w0": (32, 8)}, {"x": (2, 8)}, compute_dtype=torch.bfloat16
    )  # gradients are reduced in f32
    physical(program)
    verify(program)
    golden(str(program), ".ir")


def test_a_cast_of_the_code_moves_before_the_gather(golden: Callable[..., None]):
    """What autocast does: every reader casts the full weight."""

    def loss(p: Tensors, x: Tensors) -> torch.Tensor:
        half = x["x"].bfloat16()
        once = half @ p["w0"].bfloat16().t()
        return (once @ p["w0"].bfloat16()).float().sum()

    program = physical(program_of(loss, {"w0": (32, 8)}, {"x": (2, 8)}))
    verify(program)
    golden(str(program), ".ir")


def test_casts_to_several_dtypes_stay_behind_the_gather():
    def loss(p: Tensors, x: Tensors) -> torch.Tensor:
        return (p["w0"].bfloat16().sum() + p["w0"].half().sum()).float() + x["x"].sum()

    program = physical(program_of(loss, {"w0": (32, 8)}, {"x": (2, 8)}), 2)
    (gather, _) = collectives_of(program)
    assert gather.payload_bytes == 32 * 8 * 4


def test_what_is_computed_from_parameters_is_computed_again(golden: Callable[..., None]):
    def loss(p: Tensors, x: Tensors) -> torch.Tensor:
        weight = p["scale"] * (p["w"] / p["w"].norm(dim=1, keepdim=True))
        return torch.tanh(x["x"] @ weight).sum()

    shapes = {"w": (16, 8), "scale": (16, 1)}
    program = physical(program_of(loss, shapes, {"x": (2, 16)}))
    verify(program)
    assert crossing(program) == []
    golden(str(program), ".ir")


def crossing(program: Program) -> list[fx.Node]:
    """Forward values computed from parameters alone that backward reads."""
    sources = parameter_sources(program.graph)
    return [n for n in sources if any(stamp_of(u).phase == BACKWARD for u in n.users)]


def test_small_parameters_stay_gathered(golden: Callable[..., None]):
    program = physical(mlp_program(), persist_below=Bytes("1.5KB"))  # w0 has 1 KiB, w1 2 KiB
    verify(program)
    assert program.rules["kept_gathered"] == ("w0",)
    golden(str(program), ".ir")


def test_vectors_stay_gathered():
    def loss(p: Tensors, x: Tensors) -> torch.Tensor:
        return ((x["x"] @ p["w"].t() + p["b"]).tanh() * p["g"]).sum()

    shapes = {"w": (64, 8), "b": (64,), "g": (64,)}
    program = physical(program_of(loss, shapes, {"x": (2, 8)}), persist_vectors=True)
    verify(program)
    assert program.rules["kept_gathered"] == ("b", "g")
    assert [n.name for n in crossing(program)] == ["g_full"]


class TransposedGradient(torch.autograd.Function):
    """Of a product by ``other`` that says its gradient is ``other``, transposed."""

    @staticmethod
    def forward(ctx: Any, w: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(other)
        return w @ other

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> tuple[torch.Tensor, None]:
        (other,) = ctx.saved_tensors
        return other.t(), None


def test_a_gradient_that_forward_has_made_is_reduced_in_backward():
    def loss(p: Tensors, x: Tensors) -> torch.Tensor:
        return TransposedGradient.apply(p["w"], x["x"].sin()).sum()  # type: ignore[no-any-return]

    program = physical(program_of(loss, {"w": (8, 8)}, {"x": (8, 8)}))
    phases = [stamp_of(n).phase for n in program.graph.nodes if n.op == "call_function"]
    assert phases == sorted(phases, key=[FORWARD, BACKWARD].index)


def test_unused_parameters_bring_no_collective():
    def loss(p: Tensors, x: Tensors) -> torch.Tensor:
        return (x["x"] @ p["used"].t()).sum()

    program = program_of(loss, {"used": (32, 8), "unused": (32, 8)}, {"x": (2, 8)})
    program.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
    assert {c.stamp.param for c in collectives_of(physical(program))} == {"used"}


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_each_parameter_is_gathered_as_often_as_its_stage_says(zero_stage: int):
    program = physical(mlp_program(sharded=zero_stage > 0), zero_stage)
    found = [(c.spec.op, c.stamp.phase, c.stamp.param) for c in collectives_of(program)]
    gathers = {
        0: [],
        1: [("all_gather", "forward", "w0"), ("all_gather", "forward", "w1")],
        2: [("all_gather", "forward", "w0"), ("all_gather", "forward", "w1")],
        3: [
            ("all_gather", "forward", "w0"),
            ("all_gather", "forward", "w1"),
            ("all_gather", "backward", "w1"),  # w0 is needed for no gradient
        ],
    }
    reduction = "reduce_scatter" if zero_stage else "all_reduce"
    expected = [*gathers[zero_stage], *((reduction, "backward", w) for w in ("w1", "w0"))]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_gradient_of_one_element_repeated_is_reduced_as_a_whole(zero_stage: int):
    """Of the sum of a parameter: one element, expanded to the parameter's shape."""

    def loss(p: Tensors, x: Tensors) -> torch.Tensor:
        return p["w"].sum() * x["x"].sum()

    program = program_of(loss, {"w": (8, 4)}, {"x": (2,)}, sharded=zero_stage > 0)
    values = random_inputs(program, {"x": (2,)})
    before = lockstep(program, values)
    verify(physical(program, zero_stage))
    assert_same_bits(before, lockstep(program, values))


def test_stage_1_reduces_at_the_end():
    calls = [n for n in physical(mlp_program(), 1).graph.nodes if n.op == "call_function"]
    ours = {n for n in calls if stamp_of(n).made_by == "shard_params"}
    reductions = {n for n in ours if stamp_of(n).phase == BACKWARD}
    assert set(calls[-len(reductions) :]) == reductions
    assert sum(map(is_collective, reductions)) == 2


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_stages_2_and_3_reduce_each_gradient_when_it_is_complete(zero_stage: int):
    graph = physical(mlp_program(), zero_stage).graph
    for node in graph.nodes:
        if is_collective(node) and stamp_of(node).phase == BACKWARD and "grad" in node.name:
            assert is_wait(node.next)
            assert node.prev in node.all_input_nodes


@settings(max_examples=25)
@given(loss=random_losses, zero_stage=st.sampled_from([0, 1, 2, 3]), persist=st.booleans())
def test_no_bit_changes(loss: RandomLoss, zero_stage: int, persist: bool):
    program = loss.program(sharded=zero_stage > 0)
    before = loss.run(program)
    persist_below = Bytes("1KB") if persist else Bytes(0)
    physical(program, zero_stage, persist_below=persist_below)
    assert_same_bits(before, loss.run(program))


@settings(max_examples=15)
@given(loss=random_losses)
def test_stage_3_keeps_nothing_of_parameters(loss: RandomLoss):
    program = physical(loss.program())
    program.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
    verify(program)
    kept = {name for name, p in program.params.items() if p.layout.replicated}
    sources = parameter_sources(program.graph)
    assert [n for n in crossing(program) if not sources[n] <= kept] == []


ERRORS: dict[str, tuple[Callable[[], None], str]] = {
    "no stage": (
        lambda: ShardParams(zero_stage=4).run(weighted((32, 8))),
        "zero_stage must be 0, 1, 2 or 3, not 4",
    ),
    "sharded under stage 0": (
        lambda: ShardParams(zero_stage=0).run(weighted((32, 8))),
        "parameter 'w' is sharded, and zero_stage 0 keeps parameters whole; use zero1, zero2 or "
        "zero3, or do not call zc.shard on this model",
    ),
    "unsharded under stage 2": (
        lambda: ShardParams(zero_stage=2).run(unmanaged(weighted((32, 8), sharded=False))),
        "parameter 'w' is not sharded, and zero_stage 2 needs it to be; call zc.shard(model) "
        "before the optimizer is built, or use zero0",
    ),
}


def unmanaged(program: Program) -> Program:
    """``program`` as captured from a model that ``zc.shard`` never saw."""
    program.params = {name: replace(p, managed=False) for name, p in program.params.items()}
    return program


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str):
    call, message = ERRORS[name]
    with pytest.raises(PipelineError) as error:
        call()
    assert str(error.value) == message


def test_each_of_two_losses_gathers_for_itself(golden: Any) -> None:
    """Forward, backward, forward, backward in one step: nothing gathered lives through a turn."""
    program = two_turns([{"shard_params": {"zero_stage": 3}}, "shard_update", "clean_graph"])
    golden(str(program).partition("\n")[2], ".ir")
