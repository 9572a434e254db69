"""Types of inserted nodes: an op runs once for calls that are alike, and what it says is kept."""

from operator import getitem
from typing import Any

import pytest
import torch
from building import Build, built
from torch import fx

from zc.program import derived
from zc.program.alike import described
from zc.program.edit import Editor
from zc.program.nodes import tensors_of, value_of
from zc.program.types import derive

aten: Any = torch.ops.aten


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of nodes whose ops have run."""
    found: list[str] = []

    def counted(node: fx.Node, mode: Any) -> Any:
        found.append(node.name)
        return derive(node, mode)

    monkeypatch.setattr(derived, "derive", counted)
    return found


def a_layer(edit: Editor, x: fx.Node) -> fx.Node:
    """Ops that return something new, a view, several values, and what they wrote to."""
    first = edit.call(aten.mul.Tensor, x, 2.0)
    second = edit.call(aten.mm.default, first, edit.call(aten.t.default, x))
    both = edit.call(aten.var_mean.correction, second, [0], correction=0)
    mean = edit.call(getitem, both, 1)
    spread = edit.call(aten.expand.default, mean, [4, 4])
    return edit.call(aten.copy_.default, edit.call(aten.clone.default, second), spread)


def test_alike_calls_run_once(runs: list[str]):
    def build(edit: Editor, x: fx.Node) -> fx.Node:
        for _ in range(5):
            x = a_layer(edit, x)
        return x

    program = built(build)
    assert runs == ["mul", "t", "mm", "var_mean", "expand", "clone", "copy"]
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target is not getitem:
            value = derive(node, program.fake_mode)
            again = value if isinstance(value, tuple) else (value,)
            assert list(map(described, tensors_of(node))) == list(map(described, again))


def test_a_result_lies_where_its_op_puts_it(runs: list[str]):
    made: list[fx.Node] = []

    def build(edit: Editor, x: fx.Node) -> fx.Node:
        for _ in range(2):
            own = edit.call(aten.clone.default, x)
            row = edit.call(aten.select.int, own, 0, 1)
            made.extend((own, row, edit.call(aten.copy_.default, own, x)))
        return x

    built(build)
    first, second = made[:3], made[3:]
    assert runs == [node.name for node in first]
    for own, row, written in (first, second):
        assert value_of(written) is value_of(own)
        assert value_of(row).untyped_storage()._cdata == value_of(own).untyped_storage()._cdata
        assert value_of(row).storage_offset() == 4
    storages = {value_of(node[0]).untyped_storage()._cdata for node in (first, second)}
    assert len(storages) == 2


def long_list(edit: Editor, x: fx.Node) -> list[fx.Node]:
    parts = [edit.call(aten.neg.default, x) for _ in range(9)]
    return [edit.call(aten.cat.default, parts) for _ in range(2)]


def other_constant(edit: Editor, x: fx.Node) -> list[fx.Node]:
    return [edit.call(aten.sum.dim_IntList, x, [dim]) for dim in (0, 1)]


def same_operand_twice(edit: Editor, x: fx.Node) -> list[fx.Node]:
    other = edit.call(aten.neg.default, x)
    return [edit.call(aten.add.Tensor, x, second) for second in (x, other)]


@pytest.mark.parametrize("build", [long_list, other_constant, same_operand_twice])
def test_what_is_run_each_time(build: Build, runs: list[str]):
    values = built(build).output_values()
    assert [name for name in runs if not name.startswith("neg")] == [v.name for v in values if v]


def test_an_error_is_that_of_the_op(runs: list[str]):
    def build(edit: Editor, x: fx.Node) -> fx.Node:
        return edit.call(aten.view.default, x, [3])

    for _ in range(2):
        with pytest.raises(RuntimeError, match="shape '\\[3\\]' is invalid for input of size 16"):
            built(build)
    assert len(runs) == 2
