"""bucket_collectives: what becomes one, where it stands, what it leaves alone; no bit changes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from multiprocess import fake_world
from random_losses import RandomLoss, assert_same_bits, random_losses
from torch import fx, nn
from tracing import Shapes, physical, program_of, random_inputs
from update.optimizers import of
from update.step_programs import outcome, step_program
from zc.passes.bucket_collectives import BucketCollectives
from zc.passes.fuse_update import FuseUpdate
from zc.passes.shard_params import ShardParams
from zc.passes.shard_update import ShardUpdate

from zc.errors import PipelineError
from zc.inspection import capture
from zc.pipelines.pipeline import PassPipeline
from zc.program.collectives import C10D, collectives_of, is_coalesced, is_wait
from zc.program.edit import Editor
from zc.program.liveness import peak_bytes
from zc.program.loops import loop_by_node
from zc.program.nodes import value_of
from zc.program.program import Program
from zc.program.stamps import BACKWARD, FORWARD, UPDATE, restamp, stamp_of
from zc.program.units import Bytes
from zc.run.lockstep import lockstep
from zc.state.shard import shard
from zc.verify import verify

Tensors = dict[str, torch.Tensor]
INPUTS: Shapes = {"x": (4, 8)}
SQUARES: Shapes = {f"w{i}": (8, 8) for i in range(4)}
MIXED: Shapes = {"w0": (16, 8), "b": (3,), "w1": (16, 5), "scale": (5, 3)}
ONE = 8 * 8 * 4  # bytes of one of SQUARES, whole
aten: Any = torch.ops.aten


def chain(p: Tensors, x: Tensors) -> torch.Tensor:
    value = x["x"]
    for weight in p.values():
        value = torch.tanh(value @ weight)
    return value.square().mean()


def mixed(p: Tensors, x: Tensors) -> torch.Tensor:
    """Rows and columns, tied and padded parameters, one that every rank keeps, several dtypes."""
    hidden = torch.tanh(x["x"] @ p["w0"].t()) @ p["w1"]
    half = hidden.bfloat16() @ p["scale"].bfloat16()
    return (half + p["b"]).float().square().mean() + p["w0"].sum()


def bucketed(program: Program, gathers: int = 10**6, reductions: int = 10**6) -> Program:
    """``program`` itself, verified, after the pass."""
    BucketCollectives(Bytes(gathers), Bytes(reductions)).run(program)
    verify(program, full=True)
    return program


def squares(zero_stage: int = 3, **options: Any) -> Program:
    return physical(
        program_of(chain, SQUARES, INPUTS, sharded=zero_stage > 0, **options), zero_stage
    )


def computed(program: Program) -> list[fx.Node]:
    return [node for node in program.graph.nodes if node.op == "call_function"]


def buckets(program: Program) -> list[tuple[str, str, tuple[str, ...]]]:
    """Operation, phase and parameters of each collective, in order."""
    found = []
    for row in collectives_of(program):
        items = row.node.users if is_coalesced(row.node) else [row.node]
        names = tuple(stamp_of(item).param for item in items)
        found.append((row.spec.op, row.stamp.phase, names))
    return found


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_stage(zero_stage: int, golden: Callable[..., None]):
    sharded = zero_stage > 0
    program = bucketed(physical(program_of(mixed, MIXED, INPUTS, sharded=sharded), zero_stage))
    golden(str(program), ".ir")


def test_in_a_loop(golden: Callable[..., None]):
    golden(str(bucketed(squares(2, count=2), reductions=2 * ONE)), ".ir")


def test_casts_move_with_their_gathers(golden: Callable[..., None]):
    options: dict[str, Any] = {"compute_dtype": torch.bfloat16, "reduce_dtype": torch.bfloat16}
    loss = lambda p, x: chain(p, {"x": x["x"].bfloat16()}).float()  # noqa: E731
    golden(str(bucketed(physical(program_of(loss, SQUARES, INPUTS, **options)))), ".ir")


def test_limits_in_bytes():
    pairs = [("w0", "w1"), ("w2", "w3")]
    expected = [
        *(("all_gather", FORWARD, names) for names in pairs),
        ("all_gather", BACKWARD, ("w3", "w2")),
        ("reduce_scatter", BACKWARD, ("w3", "w2", "w1")),
        ("all_gather", BACKWARD, ("w1",)),
        ("reduce_scatter", BACKWARD, ("w0",)),
    ]
    found = buckets(bucketed(squares(), 2 * ONE, 3 * ONE + 1))
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("limit", [0, ONE, 2 * ONE - 1])
def test_where_no_two_fit_nothing_changes(zero_stage: int, limit: int):
    assert str(bucketed(squares(zero_stage), limit, 0)) == str(squares(zero_stage))


def test_gathers_start_where_the_first_started_and_are_waited_for_where_they_were():
    before, after = squares(), bucketed(squares(), 2 * ONE, 0)

    def computing(program: Program) -> list[str]:
        return [n.name for n in computed(program) if "gather" not in n.name]

    assert computing(before) == computing(after)
    starts = [c.node for c in collectives_of(after) if c.spec.op == "all_gather"]
    for start in starts:
        (first, *_) = [n for n in start.users if "item" in n.name] or [start]
        assert next(n for n in following(start) if is_wait(n)).args[0] is first


def following(node: fx.Node) -> list[fx.Node]:
    found = []
    while node.op != "output":
        node = node.next
        found.append(node)
    return found


def preceding(node: fx.Node) -> list[fx.Node]:
    found = []
    while node.prev.op != "root":
        node = node.prev
        found.append(node)
    return found


def test_reductions_start_where_the_last_gradient_is_complete_and_one_bucket_is_under_way():
    program = bucketed(squares(2), 0, 2 * ONE)
    names = [node.name for node in program.graph.nodes]
    first, second = [c.node for c in collectives_of(program) if c.spec.op == "reduce_scatter"]
    for start in (first, second):
        operands: Any = start.args[0]
        assert next(n for n in preceding(start) if not is_wait(n)) is operands[-1]
    waits = [names.index(f"w{i}_grad") for i in (3, 2, 1, 0)]
    started = [names.index(first.name), names.index(second.name)]
    assert started[0] + 4 < waits[0] < waits[1] < started[1] < waits[2] < waits[3]


def test_a_result_that_is_read_at_once_ends_a_bucket():
    """A hook of the user's, say, that looks at one gradient."""
    program = squares(2)
    edit = Editor(program, program.graph, "test")
    (wait,) = [n for n in program.graph.nodes if n.name == "w2_grad"]
    (seed,) = [n for n in program.graph.nodes if n.name == "ones_like"]
    with edit.after(wait):
        edit.call(aten.mul.Tensor, wait, seed)
    reductions = [names for op, _, names in buckets(bucketed(program)) if op == "reduce_scatter"]
    assert reductions == [("w3", "w2"), ("w1", "w0")]


def test_what_writes_an_operand_ends_a_bucket():
    program = squares(2)
    (scatter,) = [n for n in program.graph.nodes if n.name == "w3_grad_scatter"]
    edit = Editor(program, program.graph, "test")
    (place,) = [n for n in program.graph.nodes if n.name == "w2_grad"]
    with edit.after(place):
        edit.call(aten.zero_.default, scatter.args[0])
    reductions = [names for op, _, names in buckets(bucketed(program)) if op == "reduce_scatter"]
    assert reductions == [("w3", "w2"), ("w1", "w0")]


def test_a_parameter_that_is_written_is_gathered_behind_that():
    program = squares(2)
    w1 = program.placeholders("param")[1]
    (gather,) = [n for n in program.graph.nodes if n.name == "w1_gather"]
    edit = Editor(program, program.graph, "test")
    with edit.before(gather):
        gather.args = (edit.call(aten.mul_.Tensor, w1, 2.0), *gather.args[1:])
    found = [names for op, phase, names in buckets(bucketed(program)) if phase == FORWARD]
    assert found == [("w0",), ("w1", "w2", "w3")]


def test_collectives_of_the_user_and_of_optimizers_are_left_alone():
    for change in ({"user": True}, {"phase": UPDATE}):
        program = squares(2)
        for node in program.graph.find_nodes(
            op="call_function", target=C10D.reduce_scatter_tensor.default
        ):
            for one in (node, *node.users):
                restamp(one, **change)
        BucketCollectives().run(program)
        assert not any(
            is_coalesced(c.node) for c in collectives_of(program) if "grad" in c.node.name
        )


def test_phases_axes_and_dtypes_are_kept_apart():
    found = buckets(bucketed(physical(program_of(mixed, MIXED, INPUTS))))
    assert len({(op, phase, len(names)) for op, phase, names in found}) > 2
    for row in collectives_of(bucketed(physical(program_of(mixed, MIXED, INPUTS)))):
        items = row.node.users if is_coalesced(row.node) else [row.node]
        assert {stamp_of(item).phase for item in items} == {row.stamp.phase}
        assert len({value_of(item).dtype for item in items}) == 1


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_nothing_crosses_the_border_of_a_loop(zero_stage: int):
    program = bucketed(physical(program_of(mixed, MIXED, {"x": (8, 8)}, count=2), zero_stage))
    loops = loop_by_node(program.graph)
    for row in collectives_of(program):
        around = {loops.get(node) for node in (row.node, *row.node.users, *row.waits)}
        assert len(around) == 1


def test_each_turn_gathers_for_itself():
    """Forward, backward, forward, backward in one step: no bucket reaches from one to the next."""
    with fake_world(2):
        model = shard(nn.Sequential(nn.Linear(8, 16, bias=False), nn.Linear(16, 8, bias=False)))

        def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            first = model(x).sum()
            first.backward()
            second = model(y).sum()
            second.backward()
            return first.detach() + second.detach()

        passes = [{"shard_params": {"zero_stage": 3}}, "bucket_collectives"]
        program = capture(step, torch.ones(2, 8), torch.ones(2, 8), passes=passes)
    gathers = [(phase, names) for op, phase, names in buckets(program) if op == "all_gather"]
    assert gathers.count((FORWARD, ("0.weight", "1.weight"))) == 2


def test_a_memory_cap_is_kept():
    pairs = bucketed(squares(), 2 * ONE, 2 * ONE)
    capped, tight = squares(), squares()
    capped.cap_bytes = peak_bytes(pairs.graph)
    assert peak_bytes(bucketed(squares(), 8 * ONE, 8 * ONE).graph) > capped.cap_bytes
    assert str(bucketed(capped, 8 * ONE, 8 * ONE)) == str(pairs)
    tight.cap_bytes = peak_bytes(tight.graph)
    assert str(bucketed(tight, 8 * ONE, 8 * ONE)) == str(squares())


@settings(max_examples=40, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(
    loss=random_losses,
    zero_stage=st.sampled_from([0, 1, 2, 3]),
    gathers=st.integers(0, 2000),
    reductions=st.integers(0, 2000),
)
def test_no_bit_changes(loss: RandomLoss, zero_stage: int, gathers: int, reductions: int):
    program = physical(loss.program(sharded=zero_stage > 0), zero_stage)
    program.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
    before = loss.run(program)
    sent = sum(c.wire_bytes for c in collectives_of(program))
    bucketed(program, gathers, reductions)
    assert_same_bits(before, loss.run(program))
    assert sum(c.wire_bytes for c in collectives_of(program)) == sent


@settings(max_examples=25, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(
    zero_stage=st.sampled_from([0, 1, 2, 3]),
    gathers=st.integers(0, 2000),
    reductions=st.integers(0, 2000),
    fn=st.sampled_from([(chain, SQUARES), (mixed, MIXED)]),
)
def test_no_bit_changes_in_loops(zero_stage: int, gathers: int, reductions: int, fn: Any):
    loss, shapes = fn
    batch: Shapes = {"x": (8, 8)}
    program = physical(program_of(loss, shapes, batch, sharded=zero_stage > 0, count=2), zero_stage)
    inputs = random_inputs(program, batch)
    before = lockstep(program, inputs)
    bucketed(program, gathers, reductions)
    assert_same_bits(before, lockstep(program, inputs))


def stepping(zero_stage: int, make: Any) -> Program:
    program = step_program(chain, SQUARES, INPUTS, make, world=2, sharded=zero_stage > 0)
    ShardParams(zero_stage=zero_stage).run(program)
    ShardUpdate().run(program)
    return program


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("limit", [0, 2 * ONE, 10**6])
@pytest.mark.parametrize("first", ["bucket", "fuse"])
def test_early_updates(zero_stage: int, limit: int, first: str):
    """Updates stand behind the waits of their bucket; where they came first, they stay."""
    make = of("AdamW")
    before = outcome(stepping(zero_stage, make), INPUTS)
    program = stepping(zero_stage, make)
    passes = [BucketCollectives(Bytes(limit), Bytes(limit)), FuseUpdate()]
    for one in passes if first == "bucket" else reversed(passes):
        one.run(program)
        verify(program, full=True)
    torch.testing.assert_close(outcome(program, INPUTS), before, rtol=0, atol=0)
    nodes = computed(program)
    first_update = next(i for i, n in enumerate(nodes) if n.name.startswith("w3_copy"))
    last_backward = max(i for i, n in enumerate(nodes) if stamp_of(n).phase == BACKWARD)
    if zero_stage != 1 and (first == "fuse" or limit < 10**6):
        assert first_update < last_backward


def test_a_long_program_takes_no_longer_for_each_node():
    """Work grows with nodes: no search through all others for each bucket."""
    steps = {count: _steps_of(count) for count in (12, 24)}
    assert steps[24] <= 2.2 * steps[12]


def _steps_of(count: int) -> int:
    """Calls of Python functions that the pass makes on a chain of ``count`` layers."""
    import sys

    shapes = {f"w{i}": (8, 8) for i in range(count)}
    program = physical(program_of(chain, shapes, INPUTS))
    calls = 0

    def trace(frame: Any, event: str, _: Any) -> None:
        nonlocal calls
        calls += event == "call" and "torch" not in frame.f_code.co_filename

    sys.setprofile(trace)
    try:
        BucketCollectives(Bytes(8 * ONE), Bytes(8 * ONE)).run(program)
    finally:
        sys.setprofile(None)
    return calls


ERRORS = {
    "negative": (lambda: Bytes(-1), "a size cannot be negative; got -1"),
    "no unit": (lambda: Bytes("25"), "25 has no unit; write '25B' or another of B, KB, MB, GB, TB, "
                "KiB, MiB, GiB, TiB"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str):
    call, message = ERRORS[name]
    with pytest.raises(PipelineError) as error:
        BucketCollectives(gather_bytes=call())
    assert str(error.value) == message


def test_it_needs_sharded_params(tmp_path: Any):
    path = tmp_path / "early.yaml"
    path.write_text("name: early\nexecutor: interpret\npasses:\n  - bucket_collectives\n")
    with pytest.raises(PipelineError) as error:
        PassPipeline.load(path)
    assert str(error.value) == (
        f"{path}:4: 'bucket_collectives' needs sharded_params, which no earlier pass provides"
    )
