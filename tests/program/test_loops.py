"""Loops over micro-batches: what belongs to them, in which order they run, when values die."""

from typing import Any

import torch
from tracing import program_of

from zc.program.liveness import last_uses, memory_timeline
from zc.program.loops import BEGIN, END, accumulation_dtype, as_executed, loop_by_node, loops_of
from zc.program.program import Program

aten: Any = torch.ops.aten


def looped(count: int = 3) -> Program:
    """One parameter of 256 B, a batch of 32 B a row, ``count`` micro-batches of one row."""

    def loss(p: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
        return (x["x"] @ p["w"]).sum()

    return program_of(loss, {"w": (8, 8)}, {"x": (count, 8)}, world=1, count=count)


def test_a_program_without_loops_has_none():
    def loss(p: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
        return (x["x"] @ p["w"]).sum()

    graph = program_of(loss, {"w": (8, 8)}, {"x": (2, 8)}).graph
    assert loops_of(graph) == []
    assert loop_by_node(graph) == {}
    assert [node for node, _ in as_executed(graph)] == list(graph.nodes)


def test_a_body_lies_between_its_marks():
    graph = looped().graph
    (loop,) = loops_of(graph)
    assert (loop.begin.target, loop.end.target, loop.count) == (BEGIN, END, 3)
    assert (loop.body[0], loop.body[-1]) == (loop.begin.next, loop.end.prev)
    assert loop_by_node(graph) == dict.fromkeys(loop.body, loop)


def test_a_loop_without_its_end_is_none():
    graph = looped().graph
    graph.erase_node(graph.find_nodes(op="call_function", target=END)[0])
    assert loops_of(graph) == []


def test_bodies_run_once_a_turn():
    graph = looped().graph
    (loop,) = loops_of(graph)
    ran = list(as_executed(graph))
    assert len(ran) == len(graph.nodes) + 2 * (1 + len(loop.body))
    assert [turn for node, turn in ran if node is loop.begin] == [0, 1, 2]
    assert [turn for node, turn in ran if node is loop.body[-1]] == [0, 1, 2]
    assert [node for node, _ in ran if node is loop.end] == [loop.end]


def test_what_a_loop_reads_from_before_dies_with_it():
    graph = looped().graph
    dying = {node.name: sorted(v.name for v in values) for node, values in last_uses(graph).items()}
    assert dying["micro_end"] == ["loss_sum", "micro", "micro_end", "w_grad_sum", "w_read", "x"]
    assert dying["output"] == ["loss_add", "w_grad_add"]
    assert dying["w_grad_add"] == ["grad"]


def test_memory_does_not_grow_with_the_turns():
    """Parameter, its full value, its sum: 256 B each; the batch and the results of one row."""

    def beside_the_batch(count: int) -> int:
        points = memory_timeline(looped(count).graph)
        return max(point.live_bytes for point in points) - 32 * count

    assert beside_the_batch(2) == beside_the_batch(16)


def test_accumulation_dtypes():
    wide = {
        torch.bfloat16: torch.float32,
        torch.float16: torch.float32,
        torch.float32: torch.float32,
        torch.float64: torch.float64,
        torch.bool: torch.int64,
        torch.int32: torch.int64,
    }
    assert {dtype: accumulation_dtype(dtype) for dtype in wide} == wide
