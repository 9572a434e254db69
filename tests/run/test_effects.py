"""Effects on real process groups: how they are bound, and what their errors say."""

from typing import Any

import pytest
import torch
from multiprocess import fake_world
from run.programs import layered
from torch import fx
from zc.passes.bucket_collectives import BucketCollectives

from zc.comm import wire
from zc.comm.pending import PendingBucket
from zc.errors import CommunicationError, ExecutionError
from zc.program.collectives import C10D, WAIT, collectives_of
from zc.program.edit import Editor
from zc.run import effects

TWO = {"w0": (16, 16), "w1": (16, 16)}


def first(target: Any) -> fx.Node:
    return layered(TWO, world=4).graph.find_nodes(op="call_function", target=target)[0]


def gather() -> fx.Node:
    return first(C10D.all_gather_into_tensor.default)


def test_a_collective_is_started_and_waited_for_on_the_group_of_its_axis():
    node = gather()
    with fake_world(4):
        pending = effects.bind_collective(node)(torch.ones(4, 16), 4, "dp")
        full = effects.bind_wait(next(iter(node.users)))(pending)
    assert full.shape == (16, 16)


def test_a_failure_to_start(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> wire.Pending:
        raise RuntimeError("Connection closed by peer [127.0.0.1]:4711\nmore that nobody reads")

    monkeypatch.setitem(effects._STARTERS, C10D.all_gather_into_tensor.default, fail)
    with fake_world(4), pytest.raises(CommunicationError) as error:
        effects.bind_collective(gather())(torch.ones(4, 16), 4, "dp")
    assert str(error.value) == (
        'collective failed in %w0_gather: f32[16, 16] = c10d.all_gather_into_tensor(%w0, 4, "dp"): '
        "Connection closed by peer [127.0.0.1]:4711; another rank has stopped, hangs or runs a "
        "different program: look at its output first"
    )


class Late(torch.distributed.Work):
    def wait(self, timeout: Any = None) -> bool:
        raise RuntimeError("Timed out waiting 30000ms for recv operation to complete")


def test_a_failure_to_wait():
    wait = effects.bind_wait(first(WAIT))
    with pytest.raises(CommunicationError) as error:
        wait(wire.Pending(Late(), lambda: torch.ones(1)))
    assert str(error.value) == (
        "collective failed in %w0_full: f32[16, 16] = c10d.wait_tensor(%w0_gather): Timed out "
        "waiting 30000ms for recv operation to complete; another rank has stopped, hangs or runs "
        "a different program: look at its output first"
    )


def bucket() -> fx.Node:
    """The gathers of both parameters as one."""
    program = layered(TWO, world=4)
    BucketCollectives().run(program)
    (start,) = (c.node for c in collectives_of(program) if c.stamp.phase == "forward")
    return start


def test_a_bucket_is_started_once_and_its_items_are_waited_for_in_any_order():
    start = bucket()
    first, second = start.users
    with fake_world(4):
        pending = effects.bind_collective(start)([torch.ones(4, 16)] * 2, 4, "dp")
        for item in (second, first):
            wait = effects.bind_wait(next(iter(item.users)))
            assert wait(pending[item.args[1]]).shape == (16, 16)


def test_a_bucket_that_fails_is_named_by_its_start_and_by_each_wait(
    monkeypatch: pytest.MonkeyPatch,
):
    def fail(*_: Any) -> wire.PendingBucket:
        raise RuntimeError("Connection closed by peer [127.0.0.1]:4711")

    start = bucket()
    late = PendingBucket(wire.Pending(Late(), list))
    monkeypatch.setitem(effects._STARTERS, start.target, fail)
    with fake_world(4), pytest.raises(CommunicationError) as error:
        effects.bind_collective(start)([torch.ones(4, 16)] * 2, 4, "dp")
    assert str(error.value) == (
        "collective failed in %w0_gather_bucket: (f32[16, 16], f32[16, 16]) = "
        'c10d.all_gather_into_tensor_coalesced([%w0, %w1], 4, "dp"): '
        "Connection closed by peer [127.0.0.1]:4711; another rank has stopped, hangs or runs a "
        "different program: look at its output first"
    )
    for place, item in enumerate(start.users):
        with pytest.raises(CommunicationError) as error:
            effects.bind_wait(next(iter(item.users)))(late[place])
        assert str(error.value) == (
            f"collective failed in %w{place}_full: f32[16, 16] = c10d.wait_tensor("
            f"%w{place}_gather_item): Timed out waiting 30000ms for recv operation to complete; "
            f"another rank has stopped, hangs or runs a different program: look at its output first"
        )


def test_an_error_without_words(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> wire.Pending:
        raise RuntimeError

    monkeypatch.setitem(effects._STARTERS, C10D.all_gather_into_tensor.default, fail)
    with fake_world(4), pytest.raises(CommunicationError) as error:
        effects.bind_collective(gather())(torch.ones(4, 16), 4, "dp")
    assert "): RuntimeError; another rank" in str(error.value)


def test_a_collective_that_no_executor_carries_out():
    program = layered(TWO, world=4)
    (w0, *_) = program.placeholders()
    edit = Editor(program, program.graph, "test")
    with edit.before(program.output_node()):
        node = edit.call(C10D.all_to_all_single.default, w0, [1] * 4, [1] * 4, "dp")
    with pytest.raises(ExecutionError) as error:
        effects.bind_collective(node)
    assert str(error.value) == (
        "no way to carry out %all_to_all_single: f32[4, 16] = "
        'c10d.all_to_all_single(%w0, [1, 1, 1, 1], [1, 1, 1, 1], "dp")'
    )
