"""Decisions about communication: programs for batches of other sizes follow them."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from overlap import PHASES, chain, devices, memories, shapes_of, tied, widths
from random_losses import assert_same_bits
from tracing import physical, program_of, random_inputs
from zc.passes.bucket_collectives import BucketCollectives
from zc.passes.keep_gathered import KeepGathered
from zc.passes.prefetch_gathers import PrefetchGathers

from zc.cost.device import Device
from zc.program.decisions import decision_key
from zc.program.program import Program
from zc.program.units import Bytes
from zc.run.lockstep import lockstep
from zc.verify import verify
from zc.verify.agreement import communication_plan


def program_for(rows: int, device: Device | None, sizes: list[int], fn: Any) -> Program:
    program = program_of(fn, shapes_of(sizes), {"x": (rows, 8)}, 2)
    program.device = device
    return physical(program)


@settings(max_examples=15, deadline=None, phases=PHASES)
@given(
    *(devices, widths, memories, st.sampled_from([chain, tied]), st.sampled_from([0, 1000])),
    st.sampled_from([(2, 64), (64, 2)]),
)
def test_a_program_for_another_batch_follows(
    device: Device, sizes: list[int], memory: Bytes | None, fn: Any, bucket: int, rows: Any
):
    one, other = (program_for(count, device, sizes, fn) for count in rows)
    buckets = BucketCollectives(gather_bytes=Bytes(bucket), reduce_bytes=Bytes(bucket))
    passes = (buckets, KeepGathered(memory=memory), PrefetchGathers(memory=memory))
    for each in passes:
        each.run(one)
    given = random_inputs(other, {"x": (rows[1], 8)})
    before = lockstep(other, given)
    other.decisions = dict(one.decisions)
    for each in passes:
        each.run(other)
    verify(other, full=True)
    assert communication_plan(other) == communication_plan(one)
    assert other.decisions == one.decisions
    assert_same_bits(before, lockstep(other, given))


def test_a_decision_is_for_certain_collectives():
    keys = set()
    for sizes in ([8, 8], [8, 16], [8, 8, 8]):
        program = program_for(4, None, sizes, chain)
        larger = program_for(64, None, sizes, chain)
        assert decision_key(program, "a") == decision_key(larger, "a")
        keys |= {decision_key(program, "a"), decision_key(program, "b")}
    assert len(keys) == 6
