"""``keep_gathered``: what is kept, the same results, the limit, and no better choice."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from overlap import (
    DEVICE,
    PHASES,
    assert_no_slower_within,
    assert_same_results,
    assert_step_keeps_within,
    chain,
    coalesce,
    devices,
    program_on,
    tied,
    widths,
)
from zc.passes.keep_gathered import KeepGathered, keep
from zc.passes.prefetch_gathers import PrefetchGathers

from zc.cost.device import Device, Link
from zc.cost.repeats import choose, repeats_of
from zc.program.collectives import C10D
from zc.program.copying import copy_program
from zc.program.liveness import memory_timeline, peak_bytes
from zc.program.program import Program
from zc.program.units import Bytes
from zc.verify import verify


def kept(program: Program) -> tuple[str, ...]:
    return program.rules["kept_gathered"]


def test_program(golden: Callable[..., None]):
    program = program_on(DEVICE, [8, 8, 8], 3)
    KeepGathered(memory=Bytes(256)).run(program)
    verify(program)
    golden(str(program) + "\n".join(program.notes) + "\n")


@settings(max_examples=15, deadline=None, phases=PHASES)
@given(devices, widths, st.integers(0, 12_000), st.sampled_from([chain, tied]), st.booleans())
def test_results_and_limit(device: Device, sizes: list[int], memory: int, fn: Any, ahead: bool):
    program = program_on(device, sizes, 3, fn)
    if ahead:
        PrefetchGathers().run(program)
    assert_no_slower_within(program, KeepGathered(memory=Bytes(memory)).run, memory)


@settings(max_examples=5, deadline=None, phases=PHASES)
@given(devices, widths, st.booleans(), st.integers(-500, 6000))
def test_a_whole_step_keeps_its_results_and_its_cap(
    device: Device, sizes: list[int], fused: bool, room: int
):
    assert_step_keeps_within(device, sizes, [KeepGathered()], fused=fused, room=room)


def test_in_a_loop_over_micro_batches():
    program = program_on(DEVICE, [8, 16], 3, count=2)
    assert_same_results(program, KeepGathered(memory=Bytes(10**6)).run)
    assert kept(program) == ("w1",)  # backward reads no other one


@settings(max_examples=15, deadline=None, phases=PHASES)
@given(
    st.lists(st.sampled_from([8, 16, 32, 64]), min_size=3, max_size=6),
    st.sampled_from([0.0, 1.0, 30.0]),
    st.integers(0, 20_000),
)
def test_no_choice_within_the_limit_saves_more(sizes: list[int], latency: float, room: int):
    """Backward goes through layers in the reverse order, so that rooms are exact."""
    program = program_on(replace(DEVICE, node=Link(latency, 1e2)), sizes, 3)
    repeats = list(repeats_of(program, program.device or DEVICE))
    live = [point.live_bytes for point in memory_timeline(program.graph)]
    limit = max(live) + room
    saved = []
    for count in range(len(repeats) + 1):
        for some in combinations(repeats, count):
            tried = copy_program(program)
            keep(tried, some, "keep_gathered")
            if peak_bytes(tried.graph) <= limit:
                saved.append(sum(repeat.picoseconds for repeat in some))
    chosen = choose(repeats, live, limit)
    keep(program, chosen, "keep_gathered")
    assert peak_bytes(program.graph) <= limit
    assert sum(repeat.picoseconds for repeat in chosen) == max(saved)


def test_a_bucket_is_kept_as_one():
    program = program_on(DEVICE, [8, 8, 8], 3)
    names = ["w2_gather_1", "w1_gather_1"]
    coalesce(program, names, C10D.all_gather_into_tensor_coalesced.default)
    verify(program)
    KeepGathered(memory=Bytes(10**6)).run(program)
    verify(program, full=True)
    assert kept(program) == ("w1", "w2")
    assert not program.graph.find_nodes(
        op="call_function", target=C10D.all_gather_into_tensor_coalesced.default
    )


def test_one_value_of_a_bucket_may_be_kept():
    """Backward does not read ``w0``, which came in one bucket with ``w1``."""
    program = program_on(DEVICE, [8, 8, 8], 3)
    names = ["w0_gather", "w1_gather"]
    coalesce(program, names, C10D.all_gather_into_tensor_coalesced.default)
    KeepGathered(memory=Bytes(10**6)).run(program)
    verify(program, full=True)
    assert kept(program) == ("w1", "w2")


def test_a_shard_that_is_written_in_between_is_gathered_again():
    program = program_on(DEVICE, [8, 8, 8], 3)
    start = next(n for n in program.graph.nodes if n.name == "w2_gather_1")
    w2 = next(n for n in program.placeholders() if n.name == "w2")
    with program.graph.inserting_before(start):
        write = program.graph.call_function(torch.ops.aten.mul_.Scalar, (w2, 2.0))
    write.meta = dict(start.meta) | {"val": w2.meta["val"]}
    KeepGathered(memory=Bytes(10**6)).run(program)
    assert kept(program) == ("w1",)


@pytest.mark.parametrize(
    ("zero_stage", "latency", "memory", "note"),
    [
        (3, 1.0, None, "there is no memory_cap, and no memory to keep anything in"),
        (2, 1.0, Bytes(1000), "nothing is gathered a second time"),
        (3, 0.0, Bytes(1000), "nothing is gathered a second time"),
        (3, 1.0, Bytes(0),
         "keeping parameters gathered within 3.72 KB of live bytes does not shorten the step"),
    ],
)  # fmt: skip
def test_a_program_that_gains_nothing_stays_as_it_is(
    zero_stage: int, latency: float, memory: Bytes | None, note: str
):
    program = program_on(replace(DEVICE, node=Link(latency, 1e30)), [8, 16, 16], zero_stage)
    before = str(program)
    KeepGathered(memory=memory).run(program)
    assert str(program) == before
    assert program.notes == [f"keep_gathered: left alone: {note}"]
