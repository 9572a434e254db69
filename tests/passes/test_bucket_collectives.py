"""bucket_collectives: what becomes one, what it leaves alone; no bit changes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from buckets import (
    INPUTS,
    MIXED,
    ONE,
    SQUARES,
    bucketed,
    buckets,
    chain,
    computed,
    mixed,
    squares,
)
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from overlap import DEVICE, program_on
from random_losses import RandomLoss, assert_same_bits, random_losses
from tracing import Shapes, physical, program_of, random_inputs
from update.optimizers import of
from update.step_programs import outcome, step_program
from zc.passes.bucket_collectives import BucketCollectives
from zc.passes.delay_reductions import DelayReductions
from zc.passes.fuse_update import FuseUpdate
from zc.passes.prefetch_gathers import PrefetchGathers
from zc.passes.shard_params import ShardParams
from zc.passes.shard_update import ShardUpdate

from zc.cost.device import Link
from zc.cost.simulate import simulate
from zc.errors import PipelineError
from zc.pipelines.pipeline import PassPipeline
from zc.program.collectives import C10D, collectives_of, is_coalesced
from zc.program.decisions import decision_key
from zc.program.liveness import peak_bytes
from zc.program.nodes import value_of
from zc.program.program import Program
from zc.program.stamps import BACKWARD, FORWARD, UPDATE, restamp, stamp_of
from zc.program.units import Bytes
from zc.run.lockstep import lockstep
from zc.verify import verify


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


def test_without_latencies_nothing_is_coalesced():
    """What a link moves one by one is there earlier, the first of a bucket with the last."""
    program = squares(3)
    program.device, text = replace(DEVICE, node=Link(0.0, 1e3)), str(program)
    BucketCollectives().run(program)
    assert str(program) == text
    assert program.notes == [
        "bucket_collectives: left alone: coalescing keeps more waiting than it spares: at best, "
        "the step takes 19768.000ms in place of 19384.000ms"
    ]


def test_where_the_step_is_no_shorter_nothing_is_coalesced():
    program = squares(3)
    program.device, text = replace(DEVICE, node=Link(0.0, 1e30)), str(program)
    BucketCollectives().run(program)
    assert str(program) == text
    assert program.notes == ["bucket_collectives: left alone: coalescing does not shorten the step"]


@pytest.mark.parametrize(
    ("limits", "note"),
    [((2 * ONE, 0), "buckets: 3, as decided before"), ((0, 0), "left alone, as decided before")],
)
def test_limits_that_were_decided_before(limits: tuple[int, int], note: str):
    program = squares(3)
    program.decisions = {decision_key(program, "bucket_collectives"): limits}
    BucketCollectives().run(program)
    assert program.notes == [f"bucket_collectives: {note}"]
    assert str(program) == str(bucketed(squares(3), *limits))


def layered(latency: float, zero_stage: int) -> Program:
    """Layers that take as long on the link as they take to compute."""
    program = program_on(
        replace(DEVICE, node=Link(latency, 500.0)), [16] * 6, zero_stage, sharded=zero_stage > 0
    )
    return program


def step_behind(program: Program) -> float:
    """The step with all overlap that later passes make of it."""
    for each in (PrefetchGathers(), DelayReductions()):
        each.run(program)
    assert program.device is not None
    return simulate(program, program.device).seconds


@pytest.mark.parametrize(
    ("latency", "limits"),  # bytes, by stage
    [
        (0.0, [0, 0, 0]), (0.01, [0, 0, 0]), (0.2, [0, 0, 0]), (0.8, [2816, 0, 0]),
        (2.0, [5632, 2816, 2048]), (3.0, [5632, 11264, 4096]), (5.0, [5632, 11264, 16384]),
    ],
)  # fmt: skip
def test_limits_are_halved_until_latencies_spared_are_worth_the_waiting(
    latency: float, limits: list[int]
):
    for zero_stage, limit in zip((0, 1, 3), limits, strict=True):
        alone, bucketed = (layered(latency, zero_stage) for _ in range(2))
        BucketCollectives().run(bucketed)
        assert list(bucketed.decisions.values()) == [(limit, limit)]
        (note,) = bucketed.notes
        kept = "left alone: coalescing keeps more waiting than it spares: at best, the step takes "
        assert (kept in note) == (limit == 0), note
        assert step_behind(bucketed) <= step_behind(alone)


def test_where_a_cap_leaves_no_bucket_it_says_so():
    program = squares(3)
    program.cap_bytes, text = 1, str(program)
    BucketCollectives().run(program)
    assert str(program) == text
    said = "bucket_collectives: left alone: coalescing exceeds the memory cap"
    assert program.notes == [said]


def test_there_may_be_nothing_to_coalesce():
    program = program_on(DEVICE, [8], 1)
    BucketCollectives().run(program)
    assert program.notes == ["bucket_collectives: left alone: there is nothing to coalesce"]


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
