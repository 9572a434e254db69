"""What a node says by itself, read once and kept for as long as it says the same.

    for lines in read(program).values():
        for line in lines.values():
            line.sources, line.keys, line.written

A line follows from these objects and from nothing else: a node's op, arguments, type and stamp, and
what an input is bound to. Whoever changes one of them puts another object in its place, and the
node gets another line; so whether a node has changed is whether it has another line. What follows
from its operands too (their types, their stamps) is in their lines. The program keeps the lines of
the nodes that it had when it was last read.
"""

from collections.abc import Collection, Hashable, Iterator
from contextlib import contextmanager
from operator import is_
from typing import Any

from torch import fx

from zc.program.analysis import is_random
from zc.program.collectives import communicates, is_collective, is_wait
from zc.program.nodes import value_of
from zc.program.program import Program
from zc.program.stamps import BACKWARD, FORWARD, PHASES, Stamp, stamp_of
from zc.program.storages import storages_of, written_operands
from zc.program.tables import Input
from zc.program.updates import is_marker, keep_number

Lines = dict[fx.Node, "Line"]  # of one graph, in order
Reading = dict[str, Lines]  # by name of the graph


class Line:
    """One node as it was read.

    Attributes:
        node: the node.
        target, args, kwargs, value, stamped, given: the objects that the line follows from:
            ``stamped`` is the stamp, if there is one, ``given`` what an input is bound to.
        stamp: of the node, the default one where it has none.
        calls: whether it calls a function.
        formed: whether it does, and has a stamp that says who made it, in a phase that there is.
        phase: in which its value is made; inputs are there in forward, tangents in backward.
        draws: whether it draws from a generator behind the graph's back.
        sources: its operands, each once.
        keys: the storages that its value lies in, with their bytes.
        written: the operands that it writes to.
        starts: whether it starts a collective; ``waits`` whether it waits for one.
        communicates: whether it does either, or its op is another of torch's for that.
        ends: whether it is there for more than its value: a write, an output, an optimizer's step.
        right: the types of its operands when the verifier last found its own type right.
        described: what the verifier describes its type as, and for whom.
        alike: what its own type and those were described as then, and for whom.
        own: the storages of its value that lay in none of its operands then.
        work: what it does (``zc.cost.work``), with the types of its operands then.
        text: printed IR of a call, once it was printed; nodes are not renamed once they are read.
    """

    __slots__ = (
        "alike", "args", "calls", "communicates", "described", "draws", "ends", "formed", "given",
        "keys", "kwargs", "node", "own", "phase", "right", "sources", "stamp", "stamped", "starts",
        "target", "text", "value", "waits", "work", "written",
    )  # fmt: skip

    def __init__(self, node: fx.Node) -> None:
        self.node, self.target, self.args, self.kwargs = node, node.target, node.args, node.kwargs
        self.value: Any = value_of(node)
        self.stamped: Any = node.meta.get("zc")
        self.given: Any = node.meta.get("zc_input")
        self.stamp: Stamp = stamp_of(node)
        self.calls = node.op == "call_function"
        stamped = self.stamped is not None and bool(self.stamp.made_by)
        called = self.calls and callable(node.target)
        self.formed = called and stamped and self.stamp.phase in PHASES
        self.phase = self.stamp.phase if self.calls else _phase_of_input(self.given)
        self.draws = is_random(node)
        self.sources = tuple(node.all_input_nodes)
        self.keys = storages_of(node)
        self.written = tuple(written_operands(node))
        self.starts, self.waits = is_collective(node), is_wait(node)
        self.communicates = self.starts or (self.calls and communicates(node.target))
        kept = node.op == "output" or node.target is keep_number or is_marker(node)
        self.ends = kept or bool(self.written)
        self.right: tuple[Any, ...] | None = None
        self.described: tuple[Any, Hashable] = None, None
        self.alike: tuple[Any, Hashable] = None, None
        self.own: Collection[int] = self.keys
        self.text = ""
        self.work: tuple[tuple[Any, ...], Any] = (), None

    def holds(self) -> bool:
        """Whether the node still says what was read."""
        node = self.node
        meta = node.meta
        return (
            self.value is meta.get("val")
            and self.args is node.args
            and self.stamped is meta.get("zc")
            and self.kwargs is node.kwargs
            and self.target is node.target
            and self.given is meta.get("zc_input")
        )


def found_right(node: fx.Node, lines: Lines) -> bool:
    """Whether the verifier has found the type of ``node`` right, and nothing has changed since.

    Args:
        node: as it stands.
        lines: of its graph, as they were last read.
    """
    line = lines.get(node)
    if line is None or line.right is None or not line.holds():
        return False
    return all(map(is_, line.right, map(value_of, line.sources)))


def _phase_of_input(given: Any) -> str:
    return BACKWARD if isinstance(given, Input) and given.kind == "tangent" else FORWARD


def read(program: Program) -> Reading:
    """The lines of all nodes of ``program``, in order; old ones where they hold."""
    if program.still:
        return program.lines
    program.lines = {
        name: _lines(graph, program.lines.get(name, {})) for name, graph in program.graphs.items()
    }
    return program.lines


@contextmanager
def still(program: Program) -> Iterator[None]:
    """Read ``program`` once for all that asks within; nobody changes it meanwhile."""
    before, _ = program.still, read(program)
    program.still = True
    try:
        yield
    finally:
        program.still = before


def _lines(graph: fx.Graph, known: Lines) -> Lines:
    found: Lines = {}
    for node in graph.nodes:
        line = known.get(node)
        found[node] = line if line is not None and line.holds() else Line(node)
    return found
