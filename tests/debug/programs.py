"""Tiny programs to dump: a chain of layers, logical, and a pass that gathers and scatters."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.traceback import annotate, preserve_node_meta

from zc.program.collectives import C10D, WAIT
from zc.program.edit import Editor, erase_dead, replace_uses
from zc.program.layout import Layout
from zc.program.mesh import Mesh
from zc.program.nodes import set_input
from zc.program.pass_base import Pass
from zc.program.program import Program
from zc.program.retype import retype
from zc.program.stamps import Stamp, set_stamp
from zc.program.tables import Input, Output, Param
from zc.state.markers import GRAD, PARAM
from zc.torch_private import fake_mode_of

F32 = torch.float32
WIDTH = 8


def chain_step(layers: int = 1, world: int = 4, name: str = "train.py:12 step") -> Program:
    """Forward and backward of ``layers`` times ``relu(x @ w)``, with markers; no collective yet."""
    mode = fake_mode_of(())
    with mode:
        shards = [torch.empty(WIDTH // world, WIDTH) for _ in range(layers)]
        x = torch.empty(2, WIDTH)
    with preserve_node_meta():
        traced = make_fx(_chain(world))(*shards, x)
    names = [f"layers.{i}.weight" for i in range(layers)]
    _describe(traced.graph, names)
    program = Program(
        name, 1, Mesh((("dp", world),)), {"step": traced.graph},
        [Output("user"), *(Output("grad", n, "backward") for n in names)],
        params={n: _param(n, i, world) for i, n in enumerate(names)},
        fake_mode=mode,
    )  # fmt: skip
    retype(program, traced.graph)
    return program


@dataclass(frozen=True)
class GatherAll(Pass):
    """Markers become a gather and a wait, or a reduce-scatter and a wait."""

    kind = "required"
    limit: int = 0

    def run(self, program: Program) -> None:
        """Rewrite every marker; the parameters' first dimensions divide by the world."""
        graph = program.graph
        edit = Editor(program, graph, made_by=self.name)
        for node in [*graph.find_nodes(op="call_function", target=PARAM)]:
            with edit.before(node, param=node.args[0].name):
                gather = C10D.all_gather_into_tensor.default
                self._replace(edit, node, gather, (4, "dp"), node.args[0].name)
        for node in [*graph.find_nodes(op="call_function", target=GRAD)]:
            with edit.before(node):
                scatter = C10D.reduce_scatter_tensor.default
                self._replace(edit, node, scatter, ("avg", 4, "dp"), f"{node.name}_scatter")

    def _replace(self, edit: Editor, node: fx.Node, op: Any, rest: tuple, name: str) -> None:
        started = edit.call(op, node.args[0], *rest, name=f"{name}_start")
        replace_uses(node, edit.call(WAIT, started, name=f"{name}_wait"))
        erase_dead(edit.graph, [node])


@dataclass(frozen=True)
class LookAround(Pass):
    """Changes nothing, and says so."""

    def run(self, program: Program) -> None:
        """Leave the program alone."""
        program.notes.append("look_around: left alone: a < b")


def _chain(world: int) -> Any:
    layout = ([WIDTH, WIDTH], 0, "dp", world)

    def step(*args: torch.Tensor) -> list[torch.Tensor]:
        *shards, h = args
        outputs, saved = [], []
        for i, shard in enumerate(shards):
            with _at("forward", f"layers.{i}"):
                full = torch.ops.zc.param(shard, *layout, F32, F32)
                saved.append((h, full))
                h = torch.relu(h @ full)
        with _at("forward", ""):
            outputs.append(h.sum())
            grad = torch.ones_like(h)
        for i, (x, full) in reversed(list(enumerate(saved))):
            with _at("backward", f"layers.{i}"):
                local = [WIDTH // world, WIDTH]
                outputs.insert(1, torch.ops.zc.grad(x.t() @ grad, local, *layout, F32, F32))
                grad = grad @ full.t()
        return outputs

    return step


def _at(phase: str, module: str) -> Any:
    return annotate({"phase": phase, "module": module})


def _describe(graph: fx.Graph, params: list[str]) -> None:
    for i, node in enumerate(graph.find_nodes(op="placeholder")):
        is_param = i < len(params)
        set_input(node, Input("param", params[i], i) if is_param else Input("user", "x", i))
        node.name = node.target = f"w{i}" if is_param else "x"
    for node in graph.nodes:
        set_stamp(node, Stamp(**node.meta.get("custom", {})))


def _param(name: str, index: int, world: int) -> Param:
    layout = Layout("dp", world, (WIDTH, WIDTH), 0)
    return Param(name, index, layout.shape, F32, F32, F32, {"dp": layout})
