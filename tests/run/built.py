"""Programs built node by node, and their loops, for tests of what is recorded."""

from typing import Any

import torch
from torch import fx

from zc.program.edit import Editor
from zc.program.mesh import Mesh
from zc.program.nodes import set_input
from zc.program.program import Program
from zc.program.stamps import FORWARD, Stamp, set_stamp
from zc.program.tables import Input, Output, State
from zc.program.updates import NUMBER
from zc.run.arrange import arrange
from zc.run.executor import build_loop
from zc.run.late_state import Cell
from zc.torch_private import fake_mode_of

CPU = torch.device("cpu")


class Built:
    """A program built node by node: a parameter ``w``, a batch ``x``, a number ``lr``."""

    def __init__(self, device: torch.device = CPU) -> None:
        mode = fake_mode_of([])
        graph = fx.Graph()
        entry = State("lr", "hyperparameter", (), None)
        self.program = Program(
            "step", 2, Mesh(), {"step": graph}, [], state={"lr": entry}, fake_mode=mode
        )
        with mode:
            tensor = torch.empty(4, device=device)
            scalar = torch.empty(())
        self.w = self.input("w", Input("buffer", "w", 0), tensor)
        self.x = self.input("x", Input("user", "x", 1), torch.empty_like(tensor))
        self.on_cpu = self.input("on_cpu", Input("user", "on_cpu", 2), scalar)
        self.lr = self.input("lr", Input("state", "lr"), NUMBER)
        self.edit = Editor(self.program, graph, "test", Stamp(phase=FORWARD))

    def input(self, name: str, what: Input, value: Any) -> fx.Node:
        node = self.program.graphs["step"].placeholder(name)
        node.meta["val"] = value
        set_input(node, what)
        set_stamp(node, Stamp())
        return node

    def call(self, target: Any, *args: Any) -> fx.Node:
        return self.edit.call(target, *args)

    def returns(self, *values: fx.Node) -> Program:
        self.program.graph.output(list(values))
        self.program.outputs = [Output("user")] * len(values)
        return self.program

    def parts(self) -> list[tuple[bool, list[str]]]:
        found = arrange(self.program, self.program.graph, "cpu").parts
        return [(part.recorded, [node.name for node in part.nodes]) for part in found]


def loop_of(
    program: Program,
    cell: Cell,
    recorded: Any,
    kept: list[Any] | None = None,
    executor: str = "interpret",
) -> Any:
    """The loop of ``program``, which reads ``lr`` from ``cell``; ``kept`` gets what it keeps."""

    def store(value: float, name: str) -> None:
        if kept is not None:
            kept.append((name, value))

    how = (executor, "step", {"lr": cell}, store)
    return build_loop(program, program.graph, program.outputs, *how, recorded=recorded)


def double(value: float) -> float:
    return value * 2 % 3
