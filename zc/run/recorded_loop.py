"""The loop of a program with its recorded parts: how they are written and what they are given."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from torch import fx

from zc.capture.random_ops import DRAWS, MICRO_SEED
from zc.program.analysis import written_storages
from zc.program.copying import copy_program
from zc.program.liveness import last_uses
from zc.program.loops import BEGIN, as_executed
from zc.program.nodes import input_of, tensors_of
from zc.program.program import Program
from zc.program.storages import storages_of, written_operands
from zc.run.arrange import Part, arrange
from zc.run.loop import LoopWriter, Step, write_steps
from zc.run.recording import Binding, Draw, PartSpec, RecordedPart, Recorder

_AT_REST = ("param", "buffer", "state")  # kinds of inputs that stay where they are


class RecordedLoop:
    """A copy of a program, arranged in parts of which some are recorded.

    Args:
        program: after all passes; it is left as it is.
        recorder: records the parts.

    Attributes:
        program: the copy, to be run in place of ``program``.
        part_of: the number of the part that each computed node is in.
    """

    def __init__(self, program: Program, recorder: Recorder) -> None:
        self.program = copy_program(program)
        graph = self.program.graph
        found = arrange(self.program, graph, recorder.device_type)
        self._parts, self._host, self._recorder = found.parts, found.host, recorder
        self.part_of = {n: i for i, part in enumerate(self._parts) for n in part.nodes}
        self._dying = last_uses(graph)
        self._order = list(as_executed(graph))
        inputs = [n for n in graph.nodes if n.op in ("placeholder", "get_attr")]
        entering = {k for node in inputs for k in storages_of(node)}
        inner = [node for part in self._parts if part.recorded for node in part.nodes]
        self._static = {k for node in inner for k in storages_of(node)} - entering
        at_rest = [n for n in inputs if n.op == "get_attr" or input_of(n).kind in _AT_REST]
        self._fixed = {k for node in at_rest for k in storages_of(node)}
        self._fixed |= self._static | written_storages(graph)

    def wrap(self, steps: Sequence[Step]) -> list[Step]:
        """``steps`` with one step for each recorded part."""
        found: list[Step] = []
        for number, group in groupby(steps, key=lambda step: self.part_of[step.nodes[0]]):
            part, members = self._parts[number], list(group)
            found += [self._recorded(part, number, members)] if part.recorded else members
        return found

    def is_static(self, value: fx.Node) -> bool:
        """Whether the next replay writes over ``value``."""
        return not self._static.isdisjoint(storages_of(value))

    def _recorded(self, part: Part, number: int, steps: Sequence[Step]) -> Step:
        members = set(part.nodes)
        read = (s for n in part.nodes for s in n.all_input_nodes if s not in members)
        inputs = tuple(dict.fromkeys(read))
        outputs = tuple(n for n in part.nodes if any(u not in members for u in n.users))
        name = f"recorded{number}"
        writer = LoopWriter(name, frozenset(n.name for n in self.program.graph.nodes))
        if inputs:
            writer.add(f"{', '.join(n.name for n in inputs)}, = args")
        writer.add("args.clear()")
        write_steps(writer, steps, self._dying)
        writer.add(f"return [{', '.join(n.name for n in outputs)}]")
        spec = self._spec(f"{self.program.name}: {name}", part, inputs)
        function = RecordedPart(spec, writer.build(), self._recorder)

        def write(outer: LoopWriter) -> None:
            names = "".join(f"{n.name}, " for n in outputs)
            given = ", ".join(n.name for n in inputs)
            outer.add(f"{names or '_'} = {outer.object(name, function)}([{given}])")

        return Step(part.nodes, write, outputs)

    def _spec(self, name: str, part: Part, inputs: Sequence[fx.Node]) -> PartSpec:
        written = {
            k for n in part.nodes for value in written_operands(n) for k in storages_of(value)
        }
        touched = [i for i, n in enumerate(inputs) if not written.isdisjoint(storages_of(n))]
        bindings: tuple[Binding, ...] = tuple(self._binding(node) for node in inputs)
        draws = tuple(self._draws(set(part.nodes), {n: i for i, n in enumerate(inputs)}))
        return PartSpec(name, bindings, tuple(touched), draws)

    def _binding(self, node: fx.Node) -> Binding:
        if node in self._host:
            return "seed"
        if not self._fixed.isdisjoint(storages_of(node)):
            return "address"
        self._static.update(storages_of(node))
        return "copy"

    def _draws(self, members: set[fx.Node], inputs: dict[fx.Node, int]) -> Iterator[Draw]:
        """The random nodes of a part as they run; the value of a turn is that of its begin."""
        at: dict[fx.Node, int] = {}
        for node, turn in self._order:
            if node.target is BEGIN:
                at[node] = turn
            if node not in members or node.target not in DRAWS:
                continue
            seed, offset = node.args[:2]
            turn_of = None
            if isinstance(seed, fx.Node) and seed.target is MICRO_SEED and seed in members:
                seed, begin = seed.args
                turn_of = at[begin]  # type: ignore[index]
            (value,) = tensors_of(node)
            yield Draw(inputs[seed], turn_of, int(offset), value.device)  # type: ignore[arg-type]


def copied(writer: LoopWriter, values: Sequence[object], recorded: RecordedLoop | None) -> None:
    """Make copies of what is returned and would be written over."""
    nodes = dict.fromkeys(v for v in values if isinstance(v, fx.Node))
    for node in nodes:
        if recorded is not None and recorded.is_static(node):
            writer.add(f"{node.name} = {node.name}.clone()")
