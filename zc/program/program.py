"""The one thing that travels through all passes: named graphs, the tables beside them, the mesh.

program = zc.capture(step, x, y)          # logical: no collective yet
pipeline.run(program)                     # physical: gathers, reductions, waits
print(program)                            # printed IR, see zc.program.printer
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from zc.cost.device import Device
from zc.program.mesh import Mesh
from zc.program.nodes import input_of
from zc.program.printer import print_program
from zc.program.tables import Output, Param, State
from zc.program.updates import Update


@dataclass
class Program:
    """Named graphs in three phases, with tables.

    Attributes:
        name: the captured function, as ``module.py:line function``.
        level: 1 when the captured piece is split for autograd, 2 when it is one graph.
        mesh: axis names and sizes.
        graphs: in order; normally one, ``step``.
        outputs: what becomes of each output of the graph ``step``, in order.
        params: parameter table by name.
        state: table of late-bound state by name.
        constants: values of ``get_attr`` nodes by target (tensors, bodies of higher-order ops).
        fake_mode: the mode under which every ``meta["val"]`` was made.
        forward_outputs: how many leading outputs the forward half returns (level 1 training).
        training: whether the program computes gradients.
        cap_bytes: peak memory that the program must not exceed when all passes have run, ``None``
            for no cap.
        device: what the program is meant to run on, as numbers for passes that weigh costs;
            ``None`` until a pass pipeline has set it.
        fused: whether its regions are compiled when it runs, so that not all values reach memory.
        rules: facts that passes promise and the verifier holds them to (``"zero_stage": 3``,
            ``"kept_gathered": ("ln.weight",)``).
        notes: what passes say of their work for dumps, one line each, beginning with the pass's
            name.
        decisions: what passes have decided about communication, or must follow
            (``zc.program.decisions``).
        updates: traced optimizer steps; the last argument of ``zc.update`` is an index into them.
        lines: what was last read of its nodes (``zc.program.lines``), by graph.
        found: what was worked out of lines (``zc.program.remembered``).
        still: whether nobody changes it at the moment (``zc.program.lines.still``).
    """

    name: str
    level: int
    mesh: Mesh
    graphs: dict[str, fx.Graph]
    outputs: list[Output]
    params: dict[str, Param] = field(default_factory=dict)
    state: dict[str, State] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    fake_mode: Any = None
    forward_outputs: int = 0
    training: bool = True
    cap_bytes: int | None = None
    device: Device | None = None
    fused: bool = False
    rules: dict[str, Any] = field(default_factory=dict)
    decisions: dict[str, tuple[int, ...]] = field(default_factory=dict)
    updates: list[Update] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lines: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    found: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    still: bool = field(default=False, init=False, repr=False, compare=False)

    @property
    def graph(self) -> fx.Graph:
        """The graph of a program that has one."""
        (graph,) = self.graphs.values()
        return graph

    def nodes(self) -> Iterator[fx.Node]:
        """All nodes of all graphs, in program order."""
        for graph in self.graphs.values():
            yield from graph.nodes

    def placeholders(self, kind: str | None = None) -> list[fx.Node]:
        """The inputs, in order; only those of one ``kind`` when it is given."""
        nodes = [n for g in self.graphs.values() for n in g.find_nodes(op="placeholder")]
        return [n for n in nodes if kind is None or input_of(n).kind == kind]

    def output_node(self) -> fx.Node:
        """The node that returns."""
        (node,) = self.graph.find_nodes(op="output")
        return node

    def output_values(self) -> list[fx.Node | None]:
        """What the program returns, in the order of ``outputs``."""
        return list(self.output_node().args[0])  # type: ignore[arg-type]

    def __str__(self) -> str:
        return print_program(self)
