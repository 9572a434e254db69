"""The standing of a program: equal while nothing has changed, whatever has been tried."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from building import built, neg
from torch import fx

from zc.program.edit import Editor
from zc.program.nodes import set_input, value_of
from zc.program.program import Program
from zc.program.stamps import restamp
from zc.program.standing import Standing
from zc.program.tables import Input, Output

aten: Any = torch.ops.aten


def a_program() -> Program:
    def build(edit: Editor, x: fx.Node) -> fx.Node:
        return edit.call(aten.add.Tensor, neg(edit, x), neg(edit, x))

    return built(build)


def nodes_of(program: Program) -> list[fx.Node]:
    return list(program.graph.nodes)


def other_argument(program: Program) -> None:
    x, first, *_, add, _ = nodes_of(program)
    add.args = (first, x)


def other_keyword(program: Program) -> None:
    nodes_of(program)[3].kwargs = {"alpha": 2}


def other_op(program: Program) -> None:
    nodes_of(program)[1].target = aten.abs.default


def other_order(program: Program) -> None:
    _, first, second, *_ = nodes_of(program)
    first.prepend(second)


def another_node(program: Program) -> None:
    edit = Editor(program, program.graph, "test")
    with edit.before(nodes_of(program)[-1]):
        neg(edit, nodes_of(program)[0])


def fewer_nodes(program: Program) -> None:
    _, first, second, *_ = nodes_of(program)
    second.replace_all_uses_with(first)
    program.graph.erase_node(second)


def other_type(program: Program) -> None:
    node = nodes_of(program)[1]
    node.meta["val"] = value_of(node).clone()


def other_stamp(program: Program) -> None:
    restamp(nodes_of(program)[1], recompute=True)


def other_input(program: Program) -> None:
    set_input(nodes_of(program)[0], Input("user", "y", 0))


def other_output(program: Program) -> None:
    program.outputs[0] = replace(program.outputs[0])


def more_outputs(program: Program) -> None:
    program.outputs.append(Output("user"))


def another_rule(program: Program) -> None:
    program.rules["zero_stage"] = 3


def a_cap(program: Program) -> None:
    program.cap_bytes = 1


def another_name(program: Program) -> None:
    program.graphs = {"other": program.graph}


CHANGES = [
    other_argument, other_keyword, other_op, other_order, another_node, fewer_nodes, other_type,
    other_stamp, other_input, other_output, more_outputs, another_rule, a_cap, another_name,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_noticed(change: Callable[[Program], None]):
    program = a_program()
    before = Standing(program)
    change(program)
    assert Standing(program) != before


def test_what_was_undone_is_no_change():
    program = a_program()
    before = Standing(program)
    _, first, second, *_ = nodes_of(program)
    first.prepend(second)
    assert Standing(program) != before
    second.prepend(first)
    program.notes.append("tidy: left alone")
    assert Standing(program) == before
    assert Standing(program) != "a program"
