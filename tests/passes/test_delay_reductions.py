"""``delay_reductions``: what moves and how far, the same results, and no better plan."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from overlap import (
    DEVICE,
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
    step_on,
    tied,
    widths,
)
from zc.passes.delay_reductions import DelayReductions, groups, tails_of
from zc.passes.prefetch_gathers import PrefetchGathers

from zc.cost.device import Device, Link
from zc.cost.simulate import simulate
from zc.cost.windows import latest
from zc.program.collectives import C10D
from zc.program.liveness import memory_timeline, peak_bytes
from zc.program.places import move, places_of
from zc.program.units import Bytes
from zc.verify import verify


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_program(zero_stage: int, golden: Callable[..., None]):
    program = program_on(DEVICE, [8, 8, 8], zero_stage, sharded=zero_stage > 0)
    DelayReductions().run(program)
    verify(program)
    golden(str(program) + "\n".join(program.notes) + "\n")


def test_an_update_moves_with_its_wait(golden: Callable[..., None]):
    program = step_on(replace(DEVICE, op_seconds=0.25), [8, 8, 8], 3, fused=True)
    DelayReductions(memory=Bytes(10**6)).run(program)
    verify(program)
    golden(str(program))


@settings(max_examples=15, deadline=None, phases=PHASES)
@given(devices, widths, st.sampled_from([0, 1, 2, 3]), memories, st.sampled_from([chain, tied]))
def test_results_and_limit(
    device: Device, sizes: list[int], zero_stage: int, memory: Bytes | None, fn: Any
):
    program = program_on(device, sizes, zero_stage, fn, sharded=zero_stage > 0)
    assert_no_slower_within(program, DelayReductions(memory=memory).run, memory)


@settings(max_examples=6, deadline=None, phases=PHASES)
@given(devices, widths, st.booleans(), st.integers(-500, 3000), st.booleans())
def test_a_whole_step_keeps_its_results_and_its_cap(
    device: Device, sizes: list[int], fused: bool, room: int, first: bool
):
    passes = [DelayReductions(), PrefetchGathers()]
    turns = passes if first else passes[::-1]
    assert_step_keeps_within(device, sizes, turns, fused=fused, room=room)


@settings(max_examples=6, deadline=None, phases=PHASES)
@given(devices, st.sampled_from([2, 3]), memories)
def test_in_a_loop_over_micro_batches(device: Device, zero_stage: int, memory: Bytes | None):
    program = program_on(device, [8, 16], zero_stage, count=2)
    assert_same_results(program, DelayReductions(memory=memory).run)


@settings(max_examples=8, deadline=None, phases=PHASES)
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
    places = places_of(program.graph)
    places = replace(places, gaps=list(range(len(places.nodes) + 1)))
    tails = list(tails_of(places))
    live = [point.live_bytes for point in memory_timeline(program.graph)]
    limit = max(live) + room
    windows = [range(t.window.first, t.window.last + 1) for t in tails]
    best = best_by_force(program, places, windows, [t.nodes for t in tails], limit)
    found = latest([t.window for t in tails], live, limit, places)
    move(places, groups(tails, found))
    assert peak_bytes(program.graph) <= limit
    assert simulate(program, device, fused=False).seconds == pytest.approx(best)


def most_under_way(memory: int) -> int:
    """How many reductions are under way together, with ``memory`` bytes for them."""
    program = program_on(replace(DEVICE, node=Link(50.0, 1e30)), [8, 8, 8, 8], 2)
    peak = peak_bytes(program.graph)
    DelayReductions(memory=Bytes(memory)).run(program)
    assert peak_bytes(program.graph) <= peak + memory
    under_way, most = 0, 0
    for name in order(program):
        under_way += name.endswith("_scatter")
        under_way -= name.endswith("_grad")
        most = max(most, under_way)
    return most


def test_the_oldest_is_waited_for_before_one_more_is_too_many():
    """A gradient of 256 bytes, and 128 to receive in, fit where there is no peak already."""
    assert most_under_way(10**6) == 4
    assert most_under_way(256 + 128) == 4
    assert most_under_way(256 + 128 - 1) == 3


def test_a_wait_comes_as_soon_as_it_costs_no_time():
    program = program_on(DEVICE, [8, 8, 8, 8], 2)
    DelayReductions(memory=Bytes(10**6)).run(program)
    names = order(program)
    assert names.index("w3_grad") < names.index("w2_grad_scatter")


def test_another_reader_holds_a_wait():
    """Nothing that reads a sum of all gradients can come before the last of them."""
    program = step_on(replace(DEVICE, node=Link(50.0, 1e30)), [8, 8, 8], 3, fused=False)
    DelayReductions(memory=Bytes(10**6)).run(program)
    names = order(program)
    for name in ("w0", "w1", "w2"):
        reads = [n.name for n in program.graph.nodes if any(
            source.name == f"{name}_grad" for source in n.all_input_nodes)]  # fmt: skip
        assert names.index(f"{name}_grad") < min(map(names.index, reads))


@pytest.mark.parametrize(
    ("zero_stage", "latency", "note"),
    [
        (1, 1.0, "delay_reductions: left alone: waiting for reductions later within 2.56 KB of "
                 "live bytes does not shorten the step"),
        (2, 0.0, "delay_reductions: left alone: waiting for reductions later within 2.69 KB of "
                 "live bytes does not shorten the step"),
    ],
)  # fmt: skip
def test_a_program_that_gains_nothing_stays_as_it_is(zero_stage: int, latency: float, note: str):
    program = program_on(replace(DEVICE, node=Link(latency, 1e30)), [8, 8, 8], zero_stage)
    before = str(program)
    DelayReductions().run(program)
    assert str(program) == before
    assert program.notes == [note]


def test_a_bucket_is_waited_for_as_one(golden: Callable[..., None]):
    program = program_on(replace(DEVICE, op_seconds=0.25), [8, 8, 8, 8], 1)
    names = ["w3_grad_scatter", "w2_grad_scatter"]
    coalesce(program, names, C10D.reduce_scatter_tensor_coalesced.default)
    first = next(node for node in program.graph.nodes if node.name == "mm_6")
    for node in reversed([n for n in program.graph.nodes if "many" in n.name or "item" in n.name]):
        first.append(node)
    verify(program)
    assert_same_results(program, DelayReductions().run)
    golden(str(program))


def test_a_program_that_reduces_nothing_stays_as_it_is():
    program = program_on(DEVICE, [8, 8], 0, sharded=False, world=1)
    before = str(program)
    DelayReductions().run(program)
    assert str(program) == before
    assert program.notes == ["delay_reductions: left alone: no reduction can be waited for later"]
