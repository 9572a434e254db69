"""Programs of a few nodes built with an Editor, for tests of what passes keep and remove."""

from collections.abc import Callable
from operator import getitem
from typing import Any

import torch
from torch import fx

from zc.program.edit import Editor
from zc.program.mesh import Mesh
from zc.program.nodes import set_input
from zc.program.program import Program
from zc.program.tables import Input, Output
from zc.torch_private import fake_mode_of
from zc.verify import verify

aten: Any = torch.ops.aten
Build = Callable[[Editor, fx.Node], fx.Node | list[fx.Node]]


def built(build: Build, shape: tuple[int, ...] = (4, 4)) -> Program:
    """One input ``x``, the values that ``build`` computes from it returned."""
    mode = fake_mode_of([])
    graph = fx.Graph()
    x = graph.placeholder("x")
    set_input(x, Input("user", "x", 0))
    with mode:
        x.meta["val"] = torch.empty(shape)
    output = graph.output([])
    program = Program("test", 2, Mesh(), {"step": graph}, [], fake_mode=mode, training=False)
    edit = Editor(program, graph, "test")
    with edit.before(output):
        result = build(edit, x)
    results = result if isinstance(result, list) else [result]
    output.args = (results,)
    program.outputs = [Output("user") for _ in results]
    verify(program)
    return program


def ops(program: Program) -> list[str]:
    """Names of the ops in order; items of results do not count."""
    calls = [n for n in program.graph.nodes if n.op == "call_function"]
    names = [n.target._schema.name for n in calls if n.target is not getitem]
    return [name.partition("::")[2] for name in names]


def neg(edit: Editor, value: fx.Node) -> fx.Node:
    return edit.call(aten.neg.default, value)
