"""The generated loop: a graph as the source of one Python function, in program order.

    def forward(args):
        w, x = args
        args.clear()
        w_gather = start0(w)
        w_full = w_gather.wait()
        del w_gather
        mm = aten_mm(x, w_full)
        del x, w_full
        return [mm]

Arguments come in one list, which is emptied, and every value dies after its last use. A loop over
micro-batches is a ``for`` statement.
"""

import keyword
import linecache
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from zc.program.liveness import last_uses
from zc.program.loops import BEGIN
from zc.program.nodes import value_of
from zc.program.printer import print_target

_PLAIN = (int, float, bool, str, type(None))


@dataclass
class LoopWriter:
    """Collects the statements of one function and the objects they name.

    ``reserved`` are the names of its values, which no object may take.
    """

    name: str
    reserved: frozenset[str] = frozenset()
    lines: list[str] = field(default_factory=list)
    objects: dict[str, Any] = field(default_factory=dict)
    depth: int = 1

    def add(self, statement: str) -> None:
        """Append one statement."""
        self.lines.append("    " * self.depth + statement)

    def object(self, hint: str, value: Any) -> str:
        """A name for ``value`` in the function's globals, made from ``hint``."""
        base = re.sub(r"\W", "_", hint)
        base = f"_{base}" if not base or base[0].isdigit() or keyword.iskeyword(base) else base
        name, count = base, 0
        while name in self.reserved or self.objects.get(name, value) is not value:
            count += 1
            name = f"{base}_{count}"
        self.objects[name] = value
        return name

    def local(self, hint: str) -> str:
        """A name for a local variable that no value has."""
        return hint if hint not in self.reserved else self.local(f"{hint}_")

    def expression(self, value: Any) -> str:
        """``value`` as source: nodes by name, plain constants literally, others by a global."""
        if isinstance(value, fx.Node):
            return value.name
        if isinstance(value, list):
            return "[" + ", ".join(map(self.expression, value)) + "]"
        if isinstance(value, tuple):
            return "(" + "".join(f"{self.expression(v)}, " for v in value) + ")"
        if isinstance(value, slice):
            parts = (value.start, value.stop, value.step)
            return f"slice({', '.join(map(self.expression, parts))})"
        plain = isinstance(value, _PLAIN) and not isinstance(value, torch.SymInt)
        if plain and value == value and value not in (float("inf"), float("-inf")):
            return repr(value)
        return self.object(f"const_{type(value).__name__}", value)

    def call(self, node: fx.Node, function: Any, hint: str) -> None:
        """``node = function(its arguments)``."""
        args = [self.expression(a) for a in node.args]
        args += [f"{k}={self.expression(v)}" for k, v in node.kwargs.items()]
        self.add(f"{node.name} = {self.object(hint, function)}({', '.join(args)})")

    def build(self) -> Callable[[list[Any]], list[Any]]:
        """Compile the function; tracebacks show its source."""
        source = "\n".join([f"def {self.name}(args):", *self.lines]) + "\n"
        filename = f"<zc {self.name} {id(self):x}>"
        linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
        scope = dict(self.objects)
        exec(compile(source, filename, "exec"), scope)
        function = scope[self.name]
        function.source = source
        return function


@dataclass(frozen=True)
class Step:
    """One statement of the loop: the nodes it computes and how it is written.

    ``names`` are those whose values it gives a name; all of them by default. ``collect`` writes
    what comes before it and takes over the values that die in it.
    """

    nodes: tuple[fx.Node, ...]
    write: Callable[[LoopWriter], None]
    names: tuple[fx.Node, ...] | None = None
    collect: Callable[[LoopWriter], None] | None = None


def write_loop(
    name: str,
    graph: fx.Graph,
    prologue: Sequence[Step],
    steps: Sequence[Step],
    returns: Callable[[LoopWriter, fx.Node], str],
    late: set[fx.Node],
) -> LoopWriter:
    """The loop over ``steps``, which cover the computed nodes of ``graph`` in order.

    Args:
        name: of the function.
        graph: the graph that the loop runs.
        prologue: statements that prepare inputs.
        steps: statements in program order; a value dies behind the step that reads it last.
        returns: expression of the returned list.
        late: placeholders that are no arguments (``prologue`` defines them).
    """
    writer = LoopWriter(name, frozenset(n.name for n in graph.nodes))
    inputs = [n for n in graph.find_nodes(op="placeholder") if n not in late]
    if inputs:
        writer.add(f"{', '.join(n.name for n in inputs)}, = args")
    writer.add("args.clear()")
    for step in prologue:
        step.write(writer)
    unused = [n for n in graph.find_nodes(op="placeholder") if not n.users]
    _free(writer, unused)
    write_steps(writer, steps, last_uses(graph))
    (output,) = graph.find_nodes(op="output")
    writer.add(f"return {returns(writer, output)}")
    return writer


def write_steps(
    writer: LoopWriter, steps: Sequence[Step], dying: Mapping[fx.Node, Sequence[fx.Node]]
) -> None:
    """``steps`` in order; behind the step of each node, what ``dying`` has for that node dies."""
    for step in steps:
        _write_step(writer, step, dying)


def _write_step(writer: LoopWriter, step: Step, dying: Mapping[fx.Node, Sequence[fx.Node]]) -> None:
    members = set(step.nodes)
    named = members if step.names is None else set(step.names)
    dead = [v for n in step.nodes for v in dying.get(n, []) if v in named or v not in members]
    if step.collect is not None:
        step.collect(writer)
        _free(writer, [v for v in dead if v not in members])
        dead = [v for v in dead if v in members]
    step.write(writer)
    _free(writer, dead)


def mark_step(node: fx.Node) -> Step:
    """The begin or the end of a loop over micro-batches."""

    def write(writer: LoopWriter) -> None:
        if node.target is BEGIN:
            writer.add(f"for {node.name} in range({node.args[0]}):")
        writer.depth += 1 if node.target is BEGIN else -1

    return Step((node,), write, names=(node,) if node.target is BEGIN else ())


def node_step(node: fx.Node, function: Any = None) -> Step:
    """One node as one call of its op, or of ``function`` in its place."""
    target = function or node.target
    return Step((node,), lambda w: w.call(node, target, print_target(node.target)))


def _free(writer: LoopWriter, nodes: Sequence[fx.Node]) -> None:
    """Let values die; sizes stay, since regions ask for them by symbol."""
    nodes = [n for n in nodes if not isinstance(value_of(n), torch.SymInt)]
    if nodes:
        writer.add(f"del {', '.join(n.name for n in nodes)}")
