"""From a program to a function: halves, late-bound state, constants, writes and both executors."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from run.programs import layered, random_values, run
from torch import nn

import zc
import zc.backend
from zc.capture.random_ops import UNIFORM
from zc.program.nodes import input_of
from zc.program.program import Program
from zc.run.executor import build_loop
from zc.run.late_state import CELLS, Cell
from zc.run.lockstep import lockstep
from zc.run.split import late_bound, split_program

EXECUTORS = ("interpret", "inductor")
TOLERANCE = {"interpret": 0.0, "inductor": 1e-6}  # fused expressions round differently


def dropped(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.dropout(x @ weight, 0.5).tanh().sum()


def joint() -> Program:
    """The program of a differentiable function with dropout, as level 1 gets it."""
    weight = torch.ones(4, 4, requires_grad=True)
    return zc.capture(dropped, torch.ones(2, 4), weight, passes="zero0")


SEED_7 = {"seed": Cell(torch.tensor(7))}


@pytest.mark.parametrize("executor", EXECUTORS)
def test_halves_compute_what_the_whole_does(executor: str):
    program = joint()
    x, weight, tangent = torch.randn(2, 4), torch.randn(4, 4), torch.tensor(1.0)
    given = {"seed": torch.tensor(7), "tangents_1": tangent, "primals_1": x, "primals_2": weight}
    (expected,) = lockstep(program, [[given[n.name] for n in program.placeholders()]])
    forward, backward = split_program(program)
    count = program.forward_outputs
    leading, trailing = program.outputs[:count], program.outputs[count:]
    values: Any = forward.graph.find_nodes(op="output")[0].args[0]
    outputs = [*leading, *[zc.backend._SAVED] * (len(values) - count)]
    run_forward = build_loop(program, forward.graph, outputs, executor, "forward", SEED_7)
    run_backward = build_loop(program, backward.graph, trailing, executor, "backward", SEED_7)
    results = run_forward([x, weight])
    grads = run_backward([*results[count:], tangent])
    for found, wanted in zip([*results[:count], *grads], expected, strict=True):
        if wanted is not None:
            tolerance = TOLERANCE[executor]
            torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def test_the_program_stays_whole_when_it_is_split():
    program = joint()
    before = str(program)
    split_program(program)
    assert str(program) == before


def test_state_is_read_at_each_call():
    cell = Cell(torch.tensor(1))
    program = zc.capture(torch.rand_like, torch.ones(8))
    assert program.graph.find_nodes(op="call_function", target=UNIFORM)
    graph, outputs = program.graph, program.outputs
    loop = build_loop(program, graph, outputs, "interpret", "step", {"seed": cell})
    one, again = (loop([torch.ones(8)])[0] for _ in range(2))
    cell.value = torch.tensor(2)
    (other,) = loop([torch.ones(8)])
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_seed_follows_manual_seed():
    torch.manual_seed(3)
    one = CELLS["seed"].value
    torch.manual_seed(3)
    assert torch.equal(one, CELLS["seed"].value)


def test_state_that_was_not_bound():
    with pytest.raises(AssertionError) as error:
        late_bound("seed")
    assert str(error.value) == "state 'seed' was not bound"


def with_constant(x: torch.Tensor) -> torch.Tensor:
    return x * torch.tensor([1.0, 2.0, 3.0, 4.0])


@pytest.mark.parametrize("executor", EXECUTORS)
def test_constants(executor: str):
    program = zc.capture(with_constant, torch.ones(4))
    assert program.constants
    assert run(program, executor, [torch.ones(4)])[0].tolist() == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_writes_reach_the_arguments(executor: str):
    model = nn.BatchNorm1d(4)

    def forward(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(x)

    program = zc.capture(forward, torch.ones(2, 4))
    values = {"num_batches_tracked": torch.tensor(0), "running_mean": torch.zeros(4)}
    args = [
        values.get(input_of(n).subject, torch.ones(n.meta["val"].shape))
        for n in program.placeholders()
    ]
    build_loop(program, program.graph, program.outputs, executor, "step")(args)
    assert values["num_batches_tracked"] == 1
    assert values["running_mean"].tolist() == pytest.approx([0.1] * 4)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_many_layers(executor: str):
    program = layered()
    values = random_values(program)
    (expected,) = lockstep(program, [[v.clone() for v in values]])
    for found, wanted in zip(run(program, executor, values), expected, strict=True):
        tolerance = TOLERANCE[executor]
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=16 * tolerance)
