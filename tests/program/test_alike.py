"""Nodes that are alike have results of the same types, and ``retype`` leaves what is right."""

import gc
import weakref
from typing import Any

import pytest
import torch
from building import Build, built
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from zc.errors import VerifyError
from zc.program.alike import Alike
from zc.program.edit import Editor
from zc.program.nodes import value_of
from zc.program.retype import retype
from zc.verify import verify

aten: Any = torch.ops.aten


def keys_of(build: Build) -> list[Any]:
    """The keys of what ``build`` returns."""
    alike = Alike()
    return [alike.key(value) for value in built(build).output_values() if value is not None]


def test_the_same_op_on_values_of_the_same_type():
    def build(edit: Editor, x: fx.Node) -> list[fx.Node]:
        first, second = edit.call(aten.relu.default, x), edit.call(aten.neg.default, x)
        return [edit.call(aten.mul.Tensor, value, 2.0) for value in (first, second)]

    first, second = keys_of(build)
    assert first == second


def test_what_tells_nodes_apart():
    def build(edit: Editor, x: fx.Node) -> list[fx.Node]:
        other = edit.call(aten.relu.default, x)
        return [
            edit.call(aten.mul.Tensor, x, 2),
            edit.call(aten.mul.Tensor, x, 2.0),  # another constant
            edit.call(aten.mul.Tensor, x, x),  # operands in one storage
            edit.call(aten.mul.Tensor, x, other),
            edit.call(aten.mul.Tensor, edit.call(aten.t.default, x), other),  # another stride
            edit.call(aten.add.Tensor, x, other),
        ]

    keys = keys_of(build)
    assert None not in keys
    assert len(set(keys)) == len(keys)


def test_a_result_in_another_storage_is_not_alike():
    nodes: list[fx.Node] = []

    def build(edit: Editor, x: fx.Node) -> fx.Node:
        nodes.extend(edit.call(aten.view.default, x, [-1]) for _ in range(2))
        return x

    built(build)
    assert Alike().key(nodes[0]) == Alike().key(nodes[1])
    nodes[1].meta["val"] = torch.empty_like(value_of(nodes[1]))
    assert Alike().key(nodes[0]) != Alike().key(nodes[1])


def test_what_was_found_right_says_nothing_of_another_type():
    def build(edit: Editor, x: fx.Node) -> list[fx.Node]:
        return [edit.call(aten.mul.Tensor, x, 2.0) for _ in range(2)]

    program = built(build)
    _, second, _ = list(program.graph.nodes)[1:]
    second.meta["val"] = value_of(second)[:2]
    with pytest.raises(VerifyError, match=r"^type of %mul_1 is f32\[2, 4\], its op returns f32"):
        verify(program, full=False)


def test_a_type_that_was_changed_in_place_is_found_when_all_are_looked_at():
    program = built(lambda edit, x: edit.call(aten.mul.Tensor, x, 2.0))
    verify(program)
    _, product, _ = program.graph.nodes
    value_of(product).unsqueeze_(0)
    verify(program, full=False)
    with pytest.raises(VerifyError, match=r"^type of %mul is f32\[1, 4, 4\], its op returns f32"):
        verify(program)


@pytest.mark.parametrize("changed", [0, 1])
def test_storages_of_what_was_found_right_are_still_their_own(changed: int):
    def build(edit: Editor, x: fx.Node) -> list[fx.Node]:
        return [edit.call(aten.mul.Tensor, x, 2.0), edit.call(aten.neg.default, x)]

    program = built(build)
    verify(program)
    _, *nodes, _ = program.graph.nodes
    nodes[changed].meta["val"] = value_of(nodes[1 - changed]).view(4, 4)
    message = "^%neg shares the storage of %mul, which it does not read"
    with pytest.raises(VerifyError, match=message):
        verify(program, full=False)


def test_what_was_found_right_keeps_no_node_and_no_mode_alive():
    program = built(lambda edit, x: edit.call(aten.mul.Tensor, x, 2.0))
    gone = weakref.ref(program.graph), weakref.ref(program.fake_mode)
    del program
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_retype_changes_views_of_what_was_replaced_and_nothing_else():
    nodes: dict[str, fx.Node] = {}

    def build(edit: Editor, x: fx.Node) -> fx.Node:
        nodes["old"], nodes["new"] = (edit.call(aten.mul.Tensor, x, v) for v in (2.0, 3.0))
        nodes["view"] = edit.call(aten.view.default, nodes["old"], [-1])
        nodes["sum"] = edit.call(aten.add.Tensor, nodes["view"], 1.0)
        return nodes["sum"]

    program = built(build)
    types = {name: value_of(node) for name, node in nodes.items()}
    nodes["old"].replace_all_uses_with(nodes["new"])
    program.graph.erase_node(nodes.pop("old"))
    retype(program, program.graph)
    verify(program)
    assert [name for name, node in nodes.items() if value_of(node) is not types[name]] == ["view"]


def test_a_view_of_fixed_size_into_a_symbolic_one_is_like_nothing():
    nodes: list[fx.Node] = []
    mode = FakeTensorMode(shape_env=ShapeEnv())
    sizes = StatelessSymbolicContext([DimDynamic.DYNAMIC, DimDynamic.STATIC])

    def build(edit: Editor, x: fx.Node) -> fx.Node:
        nodes.append(edit.call(aten.slice.Tensor, x, 0, 0, 2))
        return x

    built(build)
    whole = mode.from_tensor(torch.ones(6, 3), symbolic_context=sizes)
    with mode:
        nodes[0].meta["val"] = whole[:2]
    assert Alike().key(nodes[0]) is None
