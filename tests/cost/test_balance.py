"""Rewrites that stay only where they help: by step, by peak, by what was decided before."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from overlap import DEVICE, INPUTS, PHASES, chain, devices, step_on, tied, widths
from torch import fx
from update.step_programs import outcome
from zc.passes.bucket_collectives import BucketCollectives
from zc.passes.clean_graph import CleanGraph
from zc.passes.fuse_update import FuseUpdate
from zc.passes.lower_update import LowerUpdate
from zc.passes.merge_common import MergeCommon
from zc.passes.recompute_pointwise import RecomputePointwise

from zc.cost.balance import Balance, rewrite_if_it_helps
from zc.cost.device import Device
from zc.cost.simulate import simulate
from zc.cost.trial import NOISE
from zc.program.decisions import decision_key
from zc.program.edit import Editor, erase_dead
from zc.program.liveness import peak_by_phase
from zc.program.pass_base import Pass
from zc.program.program import Program
from zc.program.stamps import BACKWARD, FORWARD, Stamp
from zc.program.units import Bytes
from zc.verify import verify

aten: Any = torch.ops.aten


def step(device: Device | None = DEVICE) -> Program:
    program = step_on(DEVICE, [8, 16, 8], 3, fused=False)
    program.device = device
    return program


def first(program: Program, name: str) -> fx.Node:
    return next(node for node in program.graph.nodes if node.name.startswith(name))


def lengthen(program: Program, *, by: int = 1, size: int = 4, phase: str = FORWARD) -> fx.Node:
    """One more op, whose result of ``size`` bytes a second one reads right behind it."""
    at = first(program, {FORWARD: "tanh", BACKWARD: "tanh_backward"}[phase])
    edit = Editor(program, program.graph, made_by="test")
    edit.stamp = Stamp(phase=phase)
    with edit.before(at):
        filled = edit.call(aten.full.default, [size // 4], 1.0)
        for _ in range(by):
            edit.call(aten.sum.default, filled)
    return filled


def test_a_rewrite_that_does_nothing_does_not_help():
    assert not Balance(step()).helps()


def test_a_longer_step_does_not_help():
    program = step()
    balance = Balance(program)
    lengthen(program)
    assert not balance.helps()


def test_a_shorter_step_helps_though_a_peak_rises():
    program = step()
    lengthen(program, by=5)
    balance = Balance(program)
    erase_dead(
        program.graph, list(program.graph.find_nodes(op="call_function", target=aten.sum.default))
    )
    more = lengthen(program, size=10**6)
    assert peak_by_phase(program.graph)[FORWARD] > max(balance.peaks.values())
    assert more.users
    assert balance.raised() == "raises the peak of live bytes in forward"
    assert balance.helps()


@pytest.mark.parametrize("elsewhere", ["less", "more than before"])
def test_less_memory_in_one_phase_helps_unless_another_takes_more(elsewhere: str):
    program = step()
    large = lengthen(program, size=10**6)
    balance = Balance(program)
    (reader,) = large.users
    erase_dead(program.graph, [reader])
    lengthen(program, by=3, size=10 if elsewhere == "less" else 2 * 10**6, phase=BACKWARD)
    assert balance.helps() == (elsewhere == "less")
    why = "raises the peak of live bytes: 2.00 MB in place of 1.00 MB"
    assert balance.why_not() == ("" if elsewhere == "less" else why)


def test_a_share_of_memory_is_worth_a_share_of_time():
    """Of 58 seconds a longer step takes 7 more, 12%; the peak of forward falls by 0.4% and 20%."""
    for size, helps in ((996, False), (800, True)):
        program = step()
        large = lengthen(program, size=10**6)
        before = lengthen(program, size=1000 * 10**3)
        balance = Balance(program)
        erase_dead(program.graph, [*large.users, *before.users])
        lengthen(program, size=size * 10**3)
        lengthen(program, by=7, phase=BACKWARD)
        assert balance.helps() == helps, balance.why_not()


def test_above_a_cap_whatever_lowers_the_peak_helps():
    for cap, helps in ((None, False), (2 * 10**6, False), (10**5, True)):
        program = step()
        program.cap_bytes = cap
        large = lengthen(program, size=10**6)
        balance = Balance(program)
        erase_dead(program.graph, list(large.users))
        lengthen(program, size=10**6 - 4000)
        lengthen(program, by=7, phase=BACKWARD)
        assert balance.helps() == helps


def test_without_a_device_nothing_is_weighed():
    program = step(None)
    balance = Balance(program)
    lengthen(program, size=10**6)
    assert balance.helps()
    assert balance.said("one op more") == "one op more"


def test_what_is_said():
    """Two ops fused take one second; their 8 KB are live beside 2.2, away from the old peak."""
    program = step()
    balance = Balance(program)
    before = simulate(program, DEVICE, fused=True).seconds * 1e3
    lengthen(program, size=8000)
    assert balance.said("more") == (
        f"more; the step takes {before + 1000:.3f}ms in place of {before:.3f}ms, "
        "the peak of forward 10.2 KB in place of 3.08 KB"
    )


def tried(program: Program, done: str, *, by: int) -> list[str]:
    """The note of a rewrite that adds ``by`` ops."""
    added: list[fx.Node] = []

    def rewrite() -> str:
        if done:
            added.append(lengthen(program, by=by))
        return done

    def undo() -> None:
        for reader in list(added[0].users):
            program.graph.erase_node(reader)
        erase_dead(program.graph, added)

    rewrite_if_it_helps(program, "add", rewrite, undo, "adding")
    return program.notes


def test_what_does_not_help_is_undone_and_noted():
    program, text = step(), str(step())
    assert tried(program, "added", by=1) == [
        "add: left alone: adding neither shortens the step nor lowers a peak of live bytes"
    ]
    assert str(program) == text
    assert program.decisions == {decision_key(program, "add"): (0,)}


def test_there_may_be_nothing_to_do():
    program = step()
    assert tried(program, "", by=0) == ["add: left alone: there is nothing to do"]
    assert not program.decisions


@pytest.mark.parametrize("stays", [True, False])
def test_what_was_decided_before_is_done_again(stays: bool):
    program, text = step(), str(step())
    program.decisions[decision_key(program, "add")] = (int(stays),)
    said = "added, as decided before" if stays else "left alone, as decided before"
    assert tried(program, "added", by=1) == [f"add: {said}"]
    assert (str(program) != text) == stays


PASSES: dict[str, Callable[[int], Pass]] = {
    "recompute": lambda _: RecomputePointwise(smallest=Bytes(0)),
    "buckets": lambda size: BucketCollectives(gather_bytes=Bytes(size), reduce_bytes=Bytes(size)),
    "fuse": lambda size: FuseUpdate(bucket_bytes=Bytes(size)),
}


@settings(max_examples=30, deadline=None, phases=PHASES)
@given(
    *(devices, widths, st.sampled_from([chain, tied]), st.sampled_from([1, 2, 3])),
    st.lists(st.sampled_from(sorted(PASSES)), min_size=1, max_size=3, unique=True),
    st.sampled_from([0, 600, 10**6]),
    st.sampled_from([0.0, 1e4]),
)
def test_what_stays_helps_and_changes_no_bit(
    device: Device,
    sizes: list[int],
    fn: Any,
    stage: int,
    names: list[str],
    size: int,
    memory: float,
):
    if memory:
        device = replace(device, memory_bandwidth=memory)
    program = step_on(device, sizes, stage, fused=False, fn=fn)
    results = outcome(program, INPUTS)
    for item in (PASSES[name](size) for name in names):
        text, before, peaks = str(program), seconds_of(program), peak_by_phase(program.graph)
        item.run(program)
        verify(program, full=True)
        after, peaks_after = seconds_of(program), peak_by_phase(program.graph)
        if str(program) == text:
            assert "left alone" in program.notes[-1]
        elif not item.name.startswith("bucket") and after >= before:
            shares = [1 - peaks_after[phase] / peak for phase, peak in peaks.items()]
            assert max(shares) > (after / before - 1 if before else 0.0)
            assert max(peaks_after.values()) <= max(peaks.values())
    torch.testing.assert_close(outcome(program, INPUTS), results, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=20, deadline=None, phases=PHASES)
@given(
    *(devices, widths, st.sampled_from([chain, tied]), st.sampled_from([1, 2, 3])),
    *(st.booleans(), st.sampled_from([1e2, 1e4, 1e30])),
)
def test_what_only_removes_work_needs_not_ask(
    device: Device, sizes: list[int], fn: Any, stage: int, fused: bool, memory: float
):
    program = step_on(replace(device, memory_bandwidth=memory), sizes, stage, fused=fused, fn=fn)
    for item in (CleanGraph(), MergeCommon(), LowerUpdate()):
        before, peak = seconds_of(program), max(peak_by_phase(program.graph).values())
        item.run(program)
        assert seconds_of(program) <= before * (1 + NOISE)
        assert max(peak_by_phase(program.graph).values()) <= peak


def seconds_of(program: Program) -> float:
    assert program.device is not None
    return simulate(program, program.device, fused=True).seconds
