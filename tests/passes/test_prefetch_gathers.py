"""``prefetch_gathers``: what moves and how far, the same results, and no better plan."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from overlap import (
    DEVICE,
    INPUTS,
    PHASES,
    assert_no_slower_within,
    assert_same_results,
    assert_step_keeps_within,
    best_by_force,
    chain,
    coalesce,
    devices,
    memories,
    order,
    program_on,
    shapes_of,
    tied,
    widths,
)
from tracing import physical, program_of
from zc.passes.prefetch_gathers import PrefetchGathers

from zc.cost.device import Device, Link
from zc.cost.issues import issues_of
from zc.cost.simulate import simulate
from zc.cost.windows import earliest
from zc.program.collectives import C10D, is_collective
from zc.program.liveness import memory_timeline, peak_bytes
from zc.program.places import Places, move, places_of
from zc.program.units import Bytes
from zc.verify import verify


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_program(zero_stage: int, golden: Callable[..., None]):
    program = program_on(DEVICE, [8, 8, 8], zero_stage)
    PrefetchGathers().run(program)
    verify(program)
    golden(str(program) + "\n".join(program.notes) + "\n")


def test_casts_move_along(golden: Callable[..., None]):
    sizes = shapes_of([8, 8, 8])
    program = physical(program_of(chain, sizes, INPUTS, 2, compute_dtype=torch.bfloat16))
    program.device = replace(DEVICE, op_seconds=0.25)
    PrefetchGathers().run(program)
    verify(program)
    golden(str(program))


@settings(max_examples=15, deadline=None, phases=PHASES)
@given(devices, widths, st.sampled_from([1, 2, 3]), memories, st.sampled_from([chain, tied]))
def test_results_and_limit(
    device: Device, sizes: list[int], zero_stage: int, memory: Bytes | None, fn: Any
):
    program = program_on(device, sizes, zero_stage, fn)
    assert_no_slower_within(program, PrefetchGathers(memory=memory).run, memory)


@settings(max_examples=6, deadline=None, phases=PHASES)
@given(devices, widths, st.booleans(), st.integers(-500, 3000))
def test_a_whole_step_keeps_its_results_and_its_cap(
    device: Device, sizes: list[int], fused: bool, room: int
):
    assert_step_keeps_within(device, sizes, [PrefetchGathers()], fused=fused, room=room)


@settings(max_examples=6, deadline=None, phases=PHASES)
@given(devices, st.sampled_from([1, 2, 3]), memories)
def test_in_a_loop_over_micro_batches(device: Device, zero_stage: int, memory: Bytes | None):
    program = program_on(device, [8, 16], zero_stage, count=2)
    assert_same_results(program, PrefetchGathers(memory=memory).run)


def everywhere(places: Places) -> Places:
    """``places`` with a gap before every node."""
    return replace(places, gaps=list(range(len(places.nodes) + 1)))


@settings(max_examples=12, deadline=None, phases=PHASES)
@given(
    st.lists(st.sampled_from([8, 16, 32]), min_size=3, max_size=3),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.sampled_from([0.0, 1.0, 4.0]),
    st.sampled_from([1e3, 2e2, 1e30]),
    st.integers(0, 4096),
)
def test_no_plan_in_the_same_order_is_faster(
    sizes: list[int], op: float, latency: float, bandwidth: float, room: int
):
    device = replace(DEVICE, op_seconds=op, node=Link(latency, bandwidth))
    program = program_on(device, sizes, 2)
    places = everywhere(places_of(program.graph))
    gathers = [issue for issue in issues_of(places) if issue.gathers]
    live = [point.live_bytes for point in memory_timeline(program.graph)]
    limit = max(live) + room
    windows = [range(i.window.first, i.window.last + 1) for i in gathers]
    best = best_by_force(program, places, windows, [i.nodes for i in gathers], limit)
    found = earliest([i.window for i in gathers], live, limit, places)
    move(places, [(p, i.nodes) for p, i in zip(found, gathers, strict=True)])
    assert peak_bytes(program.graph) <= limit
    assert simulate(program, device, fused=False).seconds == pytest.approx(best)


def test_a_gather_starts_as_late_as_costs_no_time():
    """The product before takes as long as the gather; the one before that is not needed."""
    program = program_on(DEVICE, [8, 8, 8, 8], 2)
    PrefetchGathers(memory=Bytes(10**6)).run(program)
    names = order(program)
    assert names.index("mm_1") < names.index("w3_gather") < names.index("mm_2")


def test_a_limit_of_nothing_more_leaves_the_peak_alone():
    program = program_on(DEVICE, [64, 64, 8], 2)
    peak = peak_bytes(program.graph)
    PrefetchGathers(memory=Bytes(0)).run(program)
    assert peak_bytes(program.graph) == peak


def test_what_backward_gathers_does_not_start_in_forward():
    program = program_on(replace(DEVICE, node=Link(100.0, 1e30)), [8, 8, 8], 3)
    PrefetchGathers(memory=Bytes(10**6)).run(program)
    names = order(program)
    first = min(i for i, name in enumerate(names) if name.endswith("gather_1"))
    assert names.index("sum_1") < first


def test_what_a_write_makes_new_is_gathered_behind_it():
    program = program_on(DEVICE, [8, 8, 8], 3)
    places = places_of(program.graph)
    w2 = next(n for n in program.placeholders() if n.name == "w2")
    start = next(n for n in places.nodes if n.name == "w2_gather_1")
    with program.graph.inserting_before(start):
        write = program.graph.call_function(torch.ops.aten.mul_.Scalar, (w2, 2.0))
    write.meta = dict(start.meta) | {"val": w2.meta["val"]}
    places = places_of(program.graph)
    (issue,) = (i for i in issues_of(places) if i.start is start)
    assert issue.window.first == places.number[write] + 1 == places.number[start]


def test_a_cast_from_before_a_write_holds_its_gather():
    sizes = shapes_of([8, 8, 8])
    program = physical(program_of(chain, sizes, INPUTS, 2, compute_dtype=torch.bfloat16))
    start = next(n for n in program.graph.nodes if n.name == "w2_gather_1")
    w2 = next(n for n in program.placeholders() if n.name == "w2")
    with program.graph.inserting_before(start):
        write = program.graph.call_function(torch.ops.aten.mul_.Scalar, (w2, 2.0))
    write.meta = dict(start.meta) | {"val": w2.meta["val"]}
    (issue,) = (i for i in issues_of(places_of(program.graph)) if i.start is start)
    assert not issue.movable
    assert issue.nodes == (start,)


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({"zero_stage": 0, "sharded": False},
         "prefetch_gathers: left alone: there is no gather to move"),
        ({"zero_stage": 2, "latency": 0.0},
         "prefetch_gathers: left alone: starting gathers earlier within 2.44 KB of live bytes does "
         "not shorten the step"),
    ],
)  # fmt: skip
def test_a_program_that_gains_nothing_stays_as_it_is(options: dict[str, Any], note: str):
    device = replace(DEVICE, node=Link(options.pop("latency", 1.0), 1e30))
    program = program_on(device, [8, 8, 8], **options)
    before = str(program)
    PrefetchGathers().run(program)
    assert str(program) == before
    assert program.notes == [note]


def test_a_bucket_moves_as_one(golden: Callable[..., None]):
    program = program_on(DEVICE, [8, 8, 8, 8], 2)
    coalesce(program, ["w2_gather", "w3_gather"], C10D.all_gather_into_tensor_coalesced.default)
    verify(program)
    assert_same_results(program, PrefetchGathers().run)
    golden(str(program))


def test_gathers_keep_their_order():
    program = program_on(DEVICE, [8, 16, 32, 8], 3)
    starts = [n.name for n in program.graph.nodes if is_collective(n) and "gather" in n.name]
    PrefetchGathers(memory=Bytes(10**6)).run(program)
    again = [n.name for n in program.graph.nodes if is_collective(n) and "gather" in n.name]
    assert again == starts
