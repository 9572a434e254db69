"""The step at best: none that the planners find is faster, and what overlaps may disturb."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from overlap import DEVICE, PHASES, chain, devices, program_on, tied, widths
from zc.passes.bucket_collectives import coalesce_up_to
from zc.passes.delay_reductions import DelayReductions
from zc.passes.prefetch_gathers import PrefetchGathers

from zc.cost.device import Device, Link
from zc.cost.overlapped import overlapped_seconds
from zc.cost.simulate import simulate
from zc.cost.trial import step_of
from zc.program.program import Program
from zc.program.units import Bytes

ROUNDING = 1e-9  # relative: sums in another order
MUCH = Bytes(10**9)


def at_best(program: Program, device: Device) -> float:
    return overlapped_seconds(program, device, step_of(program, device).seconds)


@settings(max_examples=40, deadline=None, phases=PHASES)
@given(
    *(devices, widths, st.sampled_from([chain, tied]), st.sampled_from([0, 1, 2, 3])),
    *(st.sampled_from([0, 2]), st.sampled_from([0, 600])),
)
def test_no_order_of_collectives_is_faster(
    device: Device, sizes: list[int], fn: Any, stage: int, count: int, bucket: int
):
    device = replace(device, node=replace(device.node, interference=0.0))
    program = program_on(device, sizes, stage, fn, sharded=stage > 0, count=count)
    coalesce_up_to(program, bucket, bucket)
    seconds = step_of(program, device).seconds  # moved, other ops are compiled together
    best = overlapped_seconds(program, device, seconds)
    for item in (None, PrefetchGathers(memory=MUCH), DelayReductions(memory=MUCH)):
        if item is not None:
            item.run(program)
        assert best <= simulate(program, device, seconds=seconds).seconds * (1 + ROUNDING)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_what_overlaps_disturbs(share: float):
    """Of 5 gathers and 5 reductions of a second each, the first and the last are exposed."""
    quiet, device = (replace(DEVICE, node=Link(1.0, 1e30, s)) for s in (0.0, share))
    program = program_on(device, [8] * 5, 1)
    hidden = 10 - (at_best(program, quiet) - simulate(program, quiet).compute_seconds)
    assert hidden == 8
    assert at_best(program, device) == at_best(program, quiet) + share * hidden
