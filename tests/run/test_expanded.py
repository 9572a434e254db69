"""Expanded views that code returns: what it returns in their place, and how they are made again."""

from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from zc.run.expanded import returned, with_views

aten: Any = torch.ops.aten


def expanded_by_a_size() -> tuple[list[fx.Node], list[fx.Node]]:
    """Inputs (a size, a row) and outputs (the row doubled, expanded twice) of a small region."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    context = StatelessSymbolicContext([DimDynamic.DYNAMIC, DimDynamic.STATIC])
    rows = mode.from_tensor(torch.ones(3, 4), symbolic_context=context).shape[0]
    row = mode.from_tensor(torch.ones(1, 4), static_shapes=True)
    graph = fx.Graph()

    def call(op: Any, *args: Any) -> fx.Node:
        node = graph.call_function(op, args)
        with mode:
            node.meta["val"] = op(*fx.node.map_arg(args, lambda n: n.meta["val"]))
        return node

    size, given = graph.placeholder("s"), graph.placeholder("x")
    size.meta["val"], given.meta["val"] = rows, row
    doubled = call(aten.mul.Tensor, given, 2)
    wide = call(aten.expand.default, doubled, [size, 4])
    deep = call(aten.expand.default, call(aten.unsqueeze.default, wide, 0), [2, size, 4])
    return [size, given], [doubled, wide, deep]


def test_code_returns_what_is_underneath_once():
    inputs, (doubled, wide, deep) = expanded_by_a_size()
    assert returned([deep, wide, doubled], inputs) == [doubled]


def test_views_are_made_again_with_the_sizes_that_are_given():
    inputs, outputs = expanded_by_a_size()
    calls = []

    def code(given: list[Any]) -> list[Any]:
        calls.append(len(given))
        row = given[1] * 2
        given.clear()  # as compiled code does
        return [row]

    run = with_views(code, outputs, inputs)
    row = torch.randn(1, 4)
    for rows in (3, 5):
        doubled, wide, deep = run([rows, row])
        assert torch.equal(deep, (row * 2).expand(2, rows, 4))
        assert torch.equal(wide, deep[0])
        assert wide.stride() == (0, 1)
        assert deep.untyped_storage().data_ptr() == doubled.untyped_storage().data_ptr()
    assert calls == [2, 2]


def test_code_that_returns_none_stays_as_it_is():
    inputs, (doubled, *_) = expanded_by_a_size()

    def code(given: list[Any]) -> list[Any]:
        return given

    assert with_views(code, [doubled], inputs) is code
