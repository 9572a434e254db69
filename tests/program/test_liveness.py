"""Lifetimes: when values die, what that makes of memory, and what ops write."""

from operator import getitem
from typing import Any

import torch
from tracing import physical, program_of

from zc.program.collectives import C10D, WAIT
from zc.program.edit import Editor
from zc.program.liveness import (
    largest_live,
    last_uses,
    memory_timeline,
    peak_by_phase,
    peak_bytes,
    peaks_of,
)
from zc.program.program import Program
from zc.program.storages import written_operands

aten: Any = torch.ops.aten
KIB = 1024


def square(world: int = 4) -> Program:
    """One parameter of 4 KiB, one batch of 4 KiB, a product of 4 KiB and its sum."""

    def loss(p: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
        return (x["x"] @ p["w"]).sum()

    return program_of(loss, {"w": (32, 32)}, {"x": (32, 32)}, world)


def at(program: Program, target: Any) -> int:
    node = program.graph.find_nodes(op="call_function", target=target)[0]
    return next(p.live_bytes for p in memory_timeline(program.graph) if p.node is node)


def test_values_die_where_they_are_read_last() -> None:
    program = square()
    dying = last_uses(program.graph)
    names = {node.name: [value.name for value in values] for node, values in dying.items()}
    assert names == {
        "w_read": ["w"],
        "mm": ["w_read"],
        "expand": ["ones_like"],
        "t": ["x"],
        "mm_1": ["t", "expand"],
        "grad": ["mm_1"],
        "sum_1": ["mm"],
        "output": ["sum_1", "grad"],
    }


def test_unread_values_die_where_they_are_made() -> None:
    program = square()
    edit = Editor(program, program.graph, "test")
    with edit.before(program.output_node()):
        unread = edit.call(aten.zeros.default, [4])
    assert last_uses(program.graph)[unread] == [unread]


def test_views_cost_nothing_and_keep_their_base() -> None:
    program = physical(square())
    shard, batch, full, product = KIB, 4 * KIB, 4 * KIB, 4 * KIB
    assert at(program, C10D.all_gather_into_tensor.default) == shard + batch + full
    assert at(program, WAIT) == shard + batch + full
    assert at(program, aten.mm.default) == shard + batch + full + product
    assert at(program, aten.sum.default) == shard + batch + product + 4


def test_what_a_collective_reads_lives_until_its_wait() -> None:
    program = physical(square())
    (scatter,) = program.graph.find_nodes(
        op="call_function", target=C10D.reduce_scatter_tensor.default
    )
    edit = Editor(program, program.graph, "test")
    with edit.after(scatter):
        between = edit.call(aten.zeros.default, [1])
    points = {p.node: p.live_bytes for p in memory_timeline(program.graph)}
    gradient, inputs, block, scalar = 4 * KIB, 5 * KIB, KIB, 4
    received = 3 * KIB  # every rank's block arrives; the result counts as one of the four
    assert points[scatter] == inputs + gradient + block + received + scalar
    assert points[between] == inputs + gradient + block + received + scalar + 4
    assert points[scatter] == points[between.next]


def test_a_coalesced_collective_lets_its_operands_go_at_its_first_wait() -> None:
    program = square()
    (mm, *_) = program.graph.find_nodes(op="call_function", target=aten.mm.default)
    edit = Editor(program, program.graph, "test")
    with edit.after(mm):
        operands = [edit.call(aten.zeros.default, [256]) for _ in range(2)]
        both = edit.call(C10D.all_reduce_coalesced.default, operands, "sum", "dp")
        first = edit.call(WAIT, edit.call(getitem, both, 0))
        second = edit.call(WAIT, edit.call(getitem, both, 1))
    points = {p.node: p.live_bytes for p in memory_timeline(program.graph)}
    assert points[first] - points[second] == 3 * KIB


def test_peaks() -> None:
    program = physical(square())
    peaks = peak_by_phase(program.graph)
    assert peaks == {"forward": 13 * KIB, "backward": 13 * KIB + 4}
    assert peak_bytes(program.graph) == 13 * KIB + 4
    assert peaks_of(program) == peaks
    program.fused = True
    assert peaks_of(program) == peak_by_phase(program.graph, fused=True)


def test_the_largest_values_at_a_node() -> None:
    program = physical(square())
    mm = program.graph.find_nodes(op="call_function", target=aten.mm.default)[0]
    found = [(node.name, size) for node, size in largest_live(program.graph, mm, 3)]
    assert found == [("x", 4 * KIB), ("w_gather", 4 * KIB), ("mm", 4 * KIB)]


def test_written_operands_follow_the_schema() -> None:
    program = square()
    shard, batch = program.placeholders()
    edit = Editor(program, program.graph, "test")
    with edit.before(program.output_node()):
        write = edit.call(aten.copy_.default, batch, batch)
        many = edit.call(aten._foreach_add_.Scalar, [shard, batch], 1.0)
        sum_ = edit.call(aten.sum.default, batch)
    assert written_operands(write) == [batch]
    assert written_operands(many) == [shard, batch]
    assert written_operands(sum_) == written_operands(shard) == []
