"""Lines: kept while a node says the same, read anew for one that has changed, and no longer."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from building import built, neg
from torch import fx

from zc.program.edit import Editor
from zc.program.lines import Line, read
from zc.program.nodes import set_input, value_of
from zc.program.program import Program
from zc.program.stamps import BACKWARD, restamp
from zc.program.tables import Input

aten: Any = torch.ops.aten


def a_program() -> Program:
    def build(edit: Editor, x: fx.Node) -> fx.Node:
        first = neg(edit, x)
        return edit.call(aten.add.Tensor, first, neg(edit, x))

    return built(build)


def lines_by_name(program: Program) -> dict[str, Line]:
    (lines,) = read(program).values()
    return {node.name: line for node, line in lines.items()}


def other_argument(nodes: list[fx.Node]) -> fx.Node:
    nodes[3].args = (nodes[1], nodes[0])
    return nodes[3]


def other_keyword(nodes: list[fx.Node]) -> fx.Node:
    nodes[3].kwargs = {"alpha": 2}
    return nodes[3]


def other_op(nodes: list[fx.Node]) -> fx.Node:
    nodes[3].target = aten.add_.Tensor
    return nodes[3]


def other_type(nodes: list[fx.Node]) -> fx.Node:
    nodes[1].meta["val"] = value_of(nodes[1]).clone()
    return nodes[1]


def other_stamp(nodes: list[fx.Node]) -> fx.Node:
    restamp(nodes[3], phase=BACKWARD)
    return nodes[3]


def other_input(nodes: list[fx.Node]) -> fx.Node:
    set_input(nodes[0], Input("tangent", "", 0))
    return nodes[0]


CHANGES = [other_argument, other_keyword, other_op, other_type, other_stamp, other_input]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_node_has_another_line(change: Callable[[list[fx.Node]], fx.Node]):
    program = a_program()
    before = lines_by_name(program)
    changed = change(list(program.graph.nodes)).name
    after = lines_by_name(program)
    assert [name for name in after if after[name] is not before[name]] == [changed]


def test_what_a_changed_line_says():
    program = a_program()
    before = lines_by_name(program)
    nodes = list(program.graph.nodes)
    x, first, _, add, _ = nodes
    assert before[add.name].sources == (first, nodes[2])
    assert before[add.name].written == ()
    other_argument(nodes)
    other_op(nodes)
    other_type(nodes)
    other_stamp(nodes)
    other_input(nodes)
    after = lines_by_name(program)
    assert after[add.name].sources == (first, x)
    assert after[add.name].written == (first,)
    assert before[first.name].keys.keys().isdisjoint(after[first.name].keys)
    phases = {name: line.phase for name, line in after.items()}
    assert (phases[x.name], phases[first.name], phases[add.name]) == (
        "backward",
        "forward",
        "backward",
    )


def test_nodes_that_are_gone_are_forgotten():
    program = a_program()
    _, first, second, *_ = program.graph.nodes
    read(program)
    second.replace_all_uses_with(first)
    program.graph.erase_node(second)
    (lines,) = read(program).values()
    assert second not in lines


def test_lines_keep_no_program_alive():
    program = a_program()
    read(program)
    gone = weakref.ref(program.graph)
    del program
    gc.collect()
    assert gone() is None
