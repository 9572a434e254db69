"""The lockstep interpreter: what collectives mean, what markers mean, and what it refuses."""

from collections.abc import Callable
from operator import getitem
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx
from tracing import physical, program_of, random_inputs

from zc.errors import ExecutionError
from zc.program.collectives import C10D, WAIT
from zc.program.edit import Editor
from zc.program.mesh import Mesh
from zc.program.nodes import set_input
from zc.program.program import Program
from zc.program.tables import Input, Output
from zc.run.lockstep import LockstepError, coordinate, groups_along, lockstep
from zc.torch_private import fake_mode_of

aten: Any = torch.ops.aten
WORLD = 4


def collective_program(shape: tuple[int, ...], *args: Any, world: int = WORLD) -> Program:
    """``wait(target(x, *options))`` on one input of ``shape``."""
    target, *options = args
    mode = fake_mode_of([])
    graph = fx.Graph()
    x = graph.placeholder("x")
    set_input(x, Input("user", "x", 0))
    with mode:
        x.meta["val"] = torch.empty(shape)
    output = graph.output([])
    mesh = Mesh((("dp", world),))
    program = Program("test", 2, mesh, {"step": graph}, [Output("user")], fake_mode=mode)
    edit = Editor(program, graph, "test")
    with edit.before(output):
        result = edit.call(WAIT, edit.call(target, x, *options))
    output.args = ([result],)
    return program


def ranks(*shape: int, world: int = WORLD) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(world)]


def run(program: Program, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [outputs[0] for outputs in lockstep(program, [[t] for t in tensors])]


def test_all_gather() -> None:
    program = collective_program((2, 3), C10D.all_gather_into_tensor.default, WORLD, "dp")
    shards = ranks(2, 3)
    for result in run(program, shards):
        assert torch.equal(result, torch.cat(shards))


@pytest.mark.parametrize("op", ["sum", "avg"])
def test_reduce_scatter_adds_in_rank_order(op: str) -> None:
    program = collective_program((8, 3), C10D.reduce_scatter_tensor.default, op, WORLD, "dp")
    fulls = ranks(8, 3)
    total = ((fulls[0] + fulls[1]) + fulls[2]) + fulls[3]
    expected = total / WORLD if op == "avg" else total
    assert torch.equal(torch.cat(run(program, fulls)), expected)


@pytest.mark.parametrize(("op", "fold"), [("max", torch.amax), ("min", torch.amin)])
def test_all_reduce_of_extremes(op: str, fold: Callable[..., torch.Tensor]) -> None:
    program = collective_program((3,), C10D.all_reduce.default, op, "dp")
    fulls = ranks(3)
    for result in run(program, fulls):
        assert torch.equal(result, fold(torch.stack(fulls), 0))


def test_all_to_all_transposes_blocks() -> None:
    sizes = [1] * WORLD
    program = collective_program((WORLD,), C10D.all_to_all_single.default, sizes, sizes, "dp")
    tensors = [torch.arange(WORLD) + 10.0 * rank for rank in range(WORLD)]
    results = run(program, tensors)
    assert torch.equal(torch.stack(results), torch.stack(tensors).t())


def test_coalesced_gathers_are_separate_gathers() -> None:
    program = collective_program((2, 3), C10D.all_gather_into_tensor.default, WORLD, "dp")
    (x,) = program.placeholders()
    output = program.output_node()
    edit = Editor(program, program.graph, "test")
    with edit.before(output):
        target = C10D.all_gather_into_tensor_coalesced.default
        both = edit.call(target, [x, edit.call(aten.neg.default, x)], WORLD, "dp")
        results = [edit.call(WAIT, edit.call(getitem, both, i)) for i in range(2)]
    output.args = (results,)
    shards = ranks(2, 3)
    for first, second in lockstep(program, [[t] for t in shards]):
        assert torch.equal(first, torch.cat(shards))
        assert torch.equal(second, -torch.cat(shards))


def test_groups_of_a_mesh_with_two_axes() -> None:
    mesh = Mesh((("pp", 2), ("dp", 3)))
    assert list(groups_along(mesh, "dp")) == [[0, 1, 2], [3, 4, 5]]
    assert list(groups_along(mesh, "pp")) == [[0, 3], [1, 4], [2, 5]]
    assert [coordinate(mesh, rank, "pp") for rank in range(6)] == [0, 0, 0, 1, 1, 1]
    assert [coordinate(mesh, rank, "dp") for rank in range(6)] == [0, 1, 2, 0, 1, 2]


SIZES = st.integers(min_value=1, max_value=11)


@settings(max_examples=12, derandomize=True, deadline=None)
@given(
    rows=SIZES,
    columns=SIZES,
    zero_stage=st.sampled_from([1, 2, 3]),
    compute_dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    world=st.sampled_from([2, 3, 4]),
)
def test_sharding_changes_no_bit(
    rows: int, columns: int, zero_stage: int, compute_dtype: torch.dtype, world: int
) -> None:
    def loss(p: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
        hidden = torch.tanh(x["x"].to(compute_dtype) @ p["w"]) + p["b"]
        return (hidden @ p["w"].t()).float().pow(2).mean()

    shapes, batch = {"w": (rows, columns), "b": (columns,)}, {"x": (2, rows)}
    program = program_of(loss, shapes, batch, world, compute_dtype=compute_dtype)
    inputs = random_inputs(program, batch)
    before = lockstep(program, inputs)
    after = lockstep(physical(program, zero_stage), inputs)
    for old, new in zip(before, after, strict=True):
        assert all(map(torch.equal, old, new))


def test_logical_programs_mean_data_parallel_training() -> None:
    def loss(p: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
        return (x["x"] @ p["w"]).pow(2).sum()

    program = program_of(loss, {"w": (16, 4)}, {"x": (2, 16)})
    inputs = random_inputs(program, {"x": (2, 16)})
    weight = torch.cat([shard for shard, _ in inputs]).requires_grad_()
    outputs = lockstep(program, inputs)
    grads = []
    for (_, x), (value, _) in zip(inputs, outputs, strict=True):
        eager = loss({"w": weight}, {"x": x})
        assert torch.equal(eager.detach(), value)
        grads.append(torch.autograd.grad(eager, weight)[0])
    average = (((grads[0] + grads[1]) + grads[2]) + grads[3]) / WORLD
    assert torch.equal(torch.cat([grad for _, grad in outputs]), average)


def test_constants_are_read_from_the_program() -> None:
    program = collective_program((2,), C10D.all_reduce.default, "sum", "dp", world=1)
    with program.graph.inserting_before(program.output_node()):
        constant = program.graph.get_attr("table")
    program.constants["table"] = torch.ones(2)
    program.output_node().args = ([constant],)
    assert torch.equal(run(program, ranks(2, world=1))[0], torch.ones(2))


HINT = "run zc.verify.verify(program) after each pass to find the pass that broke it"


def gather(world: int = WORLD) -> Program:
    return collective_program((2, 3), C10D.all_gather_into_tensor.default, world, "dp")


def failing() -> Program:
    program = collective_program((2, 3), C10D.all_reduce.default, "sum", "dp")
    (start,) = program.graph.find_nodes(op="call_function", target=C10D.all_reduce.default)
    edit = Editor(program, program.graph, "test")
    with edit.before(start):
        edit.call(aten.view.default, start.args[0], [6])
    return program


def all_to_all() -> Program:
    received, sent = [1, 1, 1, 1], [0, 2, 1, 1]
    return collective_program((4,), C10D.all_to_all_single.default, received, sent, "dp")


def scatter(world: int) -> Program:
    return collective_program((8, 3), C10D.reduce_scatter_tensor.default, "sum", world, "dp")


ERRORS: dict[str, tuple[Callable[[], Program], list[list[Any]], str]] = {
    "ranks": (
        gather,
        [[torch.ones(2, 3)]] * 3,
        "inputs of 3 ranks for a program on 4 (dp=4); give lockstep one list of inputs for each "
        "rank",
    ),
    "inputs": (
        gather,
        [[torch.ones(2, 3)], [], [], []],
        "rank 1 has 0 inputs for 1 placeholders; give lockstep a value for each, late-bound state "
        "included",
    ),
    "shapes": (
        gather,
        [[torch.ones(rows, 3)] for rows in (2, 2, 2, 1)],
        "collective %all_gather_into_tensor disagrees on ranks [0, 1, 2, 3]: operands are "
        "torch.float32[2, 3], torch.float32[2, 3], torch.float32[2, 3], torch.float32[1, 3]\n"
        '  forward: %all_gather_into_tensor: f32[8, 3] = c10d.all_gather_into_tensor(%x, 4, "dp")\n'
        + HINT,
    ),
    "sizes": (
        all_to_all,
        [[torch.ones(4)]] * 4,
        "collective %all_to_all_single disagrees on ranks [0, 1, 2, 3]: position 0 expects rows "
        "[1, 1, 1, 1], is sent [0, 0, 0, 0]\n  forward: %all_to_all_single: f32[4] = "
        'c10d.all_to_all_single(%x, [1, 1, 1, 1], [0, 2, 1, 1], "dp")\n' + HINT,
    ),
    "rows": (
        lambda: scatter(WORLD),
        [[torch.ones(7, 3)]] * 4,
        "collective %reduce_scatter_tensor disagrees on ranks [0, 1, 2, 3]: 7 rows do not divide "
        "by 4 ranks\n  forward: %reduce_scatter_tensor: f32[2, 3] = "
        'c10d.reduce_scatter_tensor(%x, "sum", 4, "dp")\n' + HINT,
    ),
    "group size": (
        lambda: scatter(2),
        [[torch.ones(8, 3)]] * 4,
        "collective %reduce_scatter_tensor is for 2 ranks, axis 'dp' has 4\n  forward: "
        "%reduce_scatter_tensor: f32[4, 3] = "
        'c10d.reduce_scatter_tensor(%x, "sum", 2, "dp")\n' + HINT,
    ),
    "op": (
        failing,
        [[torch.ones(2, 3)], [torch.ones(2, 2)], [torch.ones(2, 3)], [torch.ones(2, 3)]],
        "%view failed on rank 1: shape '[6]' is invalid for input of size 4\n"
        "  forward: %view: f32[6] = aten.view(%x, [6])\n" + HINT,
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    build, inputs, message = ERRORS[name]
    program = build()
    with pytest.raises(LockstepError) as error:
        lockstep(program, inputs)
    assert isinstance(error.value, ExecutionError)
    assert str(error.value) == message
