"""bucket_collectives: where a bucket starts and is waited for, and what ends it."""

from typing import Any

import pytest
import torch
from buckets import (
    MIXED,
    ONE,
    bucketed,
    buckets,
    computed,
    mixed,
    squares,
)
from torch import fx
from tracing import physical, program_of
from turns import two_turns

from zc.program.collectives import collectives_of, is_wait
from zc.program.edit import Editor
from zc.program.loops import loop_by_node
from zc.program.program import Program
from zc.program.stamps import FORWARD

aten: Any = torch.ops.aten


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


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_nothing_crosses_the_border_of_a_loop(zero_stage: int):
    program = bucketed(physical(program_of(mixed, MIXED, {"x": (8, 8)}, count=2), zero_stage))
    loops = loop_by_node(program.graph)
    for row in collectives_of(program):
        around = {loops.get(node) for node in (row.node, *row.node.users, *row.waits)}
        assert len(around) == 1


def test_each_turn_gathers_for_itself():
    """Forward, backward, forward, backward in one step: no bucket reaches from one to the next."""
    program = two_turns([{"shard_params": {"zero_stage": 3}}, "bucket_collectives"])
    gathers = [(phase, names) for op, phase, names in buckets(program) if op == "all_gather"]
    assert gathers.count((FORWARD, ("0.weight", "1.weight"))) == 2
