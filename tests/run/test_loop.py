"""The generated loop: its source, what it frees when, and how it writes values."""

import gc
import math
import traceback
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from multiprocess import fake_world
from run.programs import BATCH, layered, random_values, run
from torch import fx
from tracing import physical, program_of

from zc.run.executor import build_loop
from zc.run.lockstep import lockstep
from zc.run.loop import LoopWriter

TWO = {"w0": (16, 16), "w1": (16, 16)}


COMPILED = 1e-6  # absolute, of numbers near 1: compiled regions add in another order


def looped(world: int = 2) -> Any:
    """One parameter and three micro-batches, stage 2."""

    def loss(p: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
        return (x["x"] @ p["w"]).square().mean()

    return physical(program_of(loss, {"w": (16, 4)}, {"x": (6, 16)}, world, count=3), 2)


def source_of(program: Any, executor: str = "interpret") -> str:
    loop = build_loop(program, program.graph, program.outputs, executor, "step")
    return loop.source  # type: ignore[attr-defined]


def test_source(golden: Callable[..., None]):
    with fake_world(4):
        golden(source_of(layered(TWO, world=4)), ".py")


def test_source_with_padding(golden: Callable[..., None]):
    """Padded shards are bound at entry and narrowed at return."""
    with fake_world(4):
        golden(source_of(layered({"w0": (16, 5), "w1": (5, 16)}, world=4)), ".py")


def test_source_of_a_loop(golden: Callable[..., None]):
    """What the loop reads from before it is let go behind it."""
    with fake_world(2):
        golden(source_of(looped()), ".py")


@pytest.mark.parametrize("executor", ["interpret", "inductor"])
def test_a_loop_equals_lockstep(executor: str):
    program = looped(world=1)
    values = random_values(program)
    (expected,) = lockstep(program, [[v.clone() for v in values]])
    for found, wanted in zip(run(program, executor, values), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=COMPILED)


def test_it_equals_lockstep_bit_for_bit():
    program = layered()
    values = random_values(program)
    (expected,) = lockstep(program, [[v.clone() for v in values]])
    for found, wanted in zip(run(program, "interpret", values), expected, strict=True):
        assert torch.equal(found, wanted)


def test_arguments_are_taken_over():
    """The caller's list is emptied, so that nothing keeps a value alive but its last use."""
    program = layered(TWO)
    loop = build_loop(program, program.graph, program.outputs, "interpret", "step")
    args = random_values(program)
    loop(args)
    assert args == []


def test_values_die_after_their_last_use():
    alive: list[int] = []
    seen: list[weakref.ref[torch.Tensor]] = []

    def spy(value: torch.Tensor) -> torch.Tensor:
        gc.collect()
        alive.append(sum(ref() is not None for ref in seen))
        result = value + 1
        seen.append(weakref.ref(result))
        return result

    graph = fx.Graph()
    value = graph.placeholder("x")
    value.meta["val"] = torch.ones(2)
    for _ in range(4):
        value = graph.call_function(spy, (value,))
        value.meta["val"] = torch.ones(2)
    graph.output([value])
    from zc.run.loop import node_step, write_loop

    steps = [node_step(n) for n in graph.nodes if n.op == "call_function"]
    writer = write_loop(
        "step", graph, [], steps, lambda w, out: w.expression(list(out.args[0])), set()
    )
    (result,) = writer.build()([torch.ones(2)])
    assert result.tolist() == [5, 5]
    assert alive == [0, 1, 1, 1]


EXPRESSIONS: dict[str, tuple[Any, str]] = {
    "number": (2.5, "2.5"),
    "text": ("dp", "'dp'"),
    "nothing": (None, "None"),
    "list": ([1, [2]], "[1, [2]]"),
    "tuple": ((1,), "(1, )"),
    "slice": (slice(0, None, 2), "slice(0, None, 2)"),
    "dtype": (torch.float32, "const_dtype"),
    "infinity": (math.inf, "const_float"),
    "not a number": (math.nan, "const_float"),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_expression(name: str):
    value, text = EXPRESSIONS[name]
    assert LoopWriter("step").expression(value) == text


def test_objects_have_names_of_their_own():
    writer = LoopWriter("step", frozenset({"region"}))
    one, other = object(), object()
    assert writer.object("region", one) == "region_1"
    assert writer.object("region", one) == "region_1"
    assert writer.object("region", other) == "region_2"
    assert writer.object("class", one) == "_class"
    assert writer.object("0.weight", one) == "_0_weight"


def test_tracebacks_show_the_line():
    program = layered(TWO)
    loop = build_loop(program, program.graph, program.outputs, "interpret", "step")
    wrong = [torch.ones(3, 3) for _ in program.placeholders()]
    wrong[-1] = torch.ones(*BATCH["x"])
    with pytest.raises(RuntimeError) as error:
        loop(wrong)
    assert "mm = aten_mm(x, w0)" in "".join(traceback.format_exception(error.value))
