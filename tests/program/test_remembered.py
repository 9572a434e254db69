"""What is remembered of a program, and of a value, goes with the nodes that it followed from."""

import gc
import weakref
from typing import Any

import torch
from building import built, neg
from torch import fx

from zc.program.edit import Editor
from zc.program.liveness import live_bytes, memory_timeline
from zc.program.nodes import value_of
from zc.program.program import Program
from zc.program.remembered import remembered
from zc.program.sizes import Sizes, sizes_of

aten: Any = torch.ops.aten


def a_program() -> Program:
    def build(edit: Editor, x: fx.Node) -> fx.Node:
        return edit.call(aten.add.Tensor, neg(edit, x), neg(edit, x))

    return built(build)


def count(program: Program, found: list[None], *, in_order: bool = True) -> int:
    remembered(program, ("count", in_order), lambda: found.append(None), in_order=in_order)
    return len(found)


def test_a_changed_node_is_asked_about_again():
    program, found = a_program(), []
    _, first, second, *_ = program.graph.nodes
    assert (count(program, found), count(program, found)) == (1, 1)
    first.args = (second.args[0],)
    assert (count(program, found), count(program, found)) == (2, 2)
    second.replace_all_uses_with(first)
    program.graph.erase_node(second)
    assert (count(program, found), count(program, found)) == (3, 3)


def test_another_order_counts_where_order_does():
    program, strict, loose = a_program(), [], []
    _, first, second, *_ = program.graph.nodes
    for expected in (1, 2):
        assert count(program, strict) == expected
        assert count(program, loose, in_order=False) == 1
        first.prepend(second)


def test_live_bytes_are_those_of_the_nodes_as_they_stand():
    program = a_program()
    before = live_bytes(program)
    assert live_bytes(program) is before
    with program.fake_mode:
        for node in list(program.graph.nodes)[1:-1]:
            node.meta["val"] = torch.empty(8, 8)
    points = memory_timeline(program.graph, fused=program.fused)
    assert live_bytes(program) == [point.live_bytes for point in points] != before
    eager = live_bytes(program)
    program.fused = True
    assert live_bytes(program) is not eager


def test_nothing_remembered_keeps_a_program_alive():
    program = a_program()
    live_bytes(program)
    gone = weakref.ref(program.graph)
    del program
    gc.collect()
    assert gone() is None


def test_sizes_are_those_of_the_value():
    program = a_program()
    node = list(program.graph.nodes)[1]
    assert sizes_of(node) == Sizes(64, 64, 16)
    with program.fake_mode:
        node.meta["val"] = torch.empty(4, 1, dtype=torch.bfloat16).expand(4, 8)
    assert sizes_of(node) == Sizes(64, 8, 32)
    node.meta["val"] = [value_of(node), value_of(node)]
    assert sizes_of(node) == Sizes(128, 16, 32)
