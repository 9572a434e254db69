"""From a verified program, or half of one, to a function: bind, compile, write the loop."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import fx

from zc.clock import spending
from zc.comm.groups import rank_on
from zc.program.collectives import is_coalesced, is_collective, is_wait
from zc.program.kernels import FUSED_UPDATE
from zc.program.loops import BEGIN, END
from zc.program.nodes import input_of, tensors_of
from zc.program.packing import local_view, storage_of
from zc.program.partition import OWN_BLOCK
from zc.program.program import Program
from zc.program.rounding import ROUND_STOCHASTIC
from zc.program.stamps import stamp_of
from zc.program.tables import Output, Param
from zc.program.updates import keep_number
from zc.run import effects
from zc.run.compile import Compiled, compile_regions, usable_executor
from zc.run.deferred import Deferred
from zc.run.heap import keep_freed
from zc.run.kernels import bind_kernel
from zc.run.late_state import CELLS
from zc.run.loop import LoopWriter, Step, mark_step, node_step, write_loop
from zc.run.number_tables import UPDATE_FROM
from zc.run.recorded_loop import RecordedLoop, copied
from zc.run.regions import Region, free_of_work, split_regions

Loop = Callable[[list[Any]], list[Any]]


@spending("loop")
def build_loop(
    program: Program,
    graph: fx.Graph,
    outputs: list[Output],
    executor: str,
    name: str,
    cells: Mapping[str, Any] = MappingProxyType({}),
    store: Callable[[float, str], None] | None = None,
    deferred: Mapping[str, Deferred] = MappingProxyType({}),
    recorded: RecordedLoop | None = None,
) -> Loop:
    """The loop of ``graph`` (the program's own, or one half of it), bound to this process.

    Args:
        program: tables and mesh.
        graph: what to run; its placeholders are the arguments, late-bound state excepted.
        outputs: what becomes of each output of ``graph``.
        executor: ``inductor`` or ``interpret``.
        name: of the generated function.
        cells: where late-bound state is read, besides what every process has.
        store: keeps the next value of a counter, by its entry in the state table.
        deferred: parameters, by name, whose collectives may wait for the last micro-batch.
        recorded: which parts of ``graph`` are recorded; ``program`` and ``graph`` are its own.
    """
    if any(t.device.type == "cpu" for n in graph.nodes for t in tensors_of(n)):
        keep_freed()
    cells = CELLS | cells
    late = {n for n in graph.find_nodes(op="placeholder") if _kind(n) == "state"}
    prologue = [
        s for n in graph.find_nodes(op="placeholder") for s in _bind_input(program, n, cells)
    ]
    prologue += [_constant(program, n) for n in graph.find_nodes(op="get_attr")]
    parts = split_regions(graph, recorded.part_of if recorded else {})
    compiled = _compiled(parts) if usable_executor(executor) == "inductor" else {}
    steps = [s for part in parts for s in _steps(part, compiled, store, deferred)]
    steps = recorded.wrap(steps) if recorded else steps

    def returns(writer: LoopWriter, output: fx.Node) -> str:
        values: Any = output.args[0]
        copied(writer, values, recorded)
        items = zip(values, outputs, strict=True)
        return "[" + ", ".join(_returned(program, writer, v, info) for v, info in items) + "]"

    return write_loop(name, graph, prologue, steps, returns, late).build()


def _kind(node: fx.Node) -> str:
    return input_of(node).kind if "zc_input" in node.meta else ""


def _bind_input(program: Program, node: fx.Node, cells: Mapping[str, Any]) -> list[Step]:
    if _kind(node) == "state":
        cell = cells[input_of(node).subject]
        return [Step((), lambda w: w.add(f"{node.name} = {w.object('cell', cell)}.value"))]
    param = _param_of(program, node)
    if param is None or not param.layout.padded or not node.users:
        return []
    layout = param.layout

    def write(writer: LoopWriter) -> None:
        bind = writer.object("storage_of", storage_of)
        writer.add(f"{node.name} = {bind}({node.name}, {writer.object('layout', layout)})")

    return [Step((), write)]


def _param_of(program: Program, node: fx.Node) -> Param | None:
    if _kind(node) != "param":
        return None
    return program.params.get(input_of(node).subject)


def _constant(program: Program, node: fx.Node) -> Step:
    value = program.constants[str(node.target)]
    return Step((), lambda w: w.add(f"{node.name} = {w.object('constant', value)}"))


def _compiled(parts: Sequence[Region | fx.Node]) -> dict[int, Compiled]:
    """The compiled functions of those of ``parts`` that compute something, by identity."""
    regions = [p for p in parts if isinstance(p, Region) and not free_of_work(p)]
    functions = compile_regions(regions)
    return {id(region): f for region, f in zip(regions, functions, strict=True)}


def _steps(
    part: Region | fx.Node,
    compiled: Mapping[int, Compiled],
    store: Any,
    deferred: Mapping[str, Deferred],
) -> list[Step]:
    if isinstance(part, fx.Node):
        if is_collective(part):
            return [node_step(part, effects.bind_collective(part, _own(part, deferred)))]
        if is_wait(part):
            return [node_step(part, effects.bind_wait(part))]
        if part.target in (BEGIN, END):
            return [mark_step(part)]
        if part.target in (FUSED_UPDATE, UPDATE_FROM):
            return [node_step(part, bind_kernel(part))]
        if part.target is OWN_BLOCK:
            return [node_step(part, effects.own_block)]
        if part.target is ROUND_STOCHASTIC:
            return [node_step(part, effects.bind_rounding(part))]
        return [node_step(part, store if part.target is keep_number else None)]
    if id(part) in compiled:
        return [_region_step(part, compiled[id(part)])]
    return [node_step(node) for node in part.nodes]


def _own(collective: fx.Node, deferred: Mapping[str, Deferred]) -> list[Deferred]:
    """What is held back of each parameter that ``collective`` moves; nothing if one has none."""
    if stamp_of(collective).user:
        return []
    moved = [collective]
    if is_coalesced(collective):
        moved = sorted(collective.users, key=lambda item: item.args[1])  # type: ignore
    names = [stamp_of(node).param for node in moved]
    return [deferred[name] for name in names] if set(names) <= set(deferred) else []


def _region_step(region: Region, function: Compiled) -> Step:
    """A region takes over the values that die in it, and lets each go as soon as it can."""

    def collect(writer: LoopWriter) -> None:
        inputs = ", ".join(n.name for n in region.inputs)
        writer.add(f"{writer.local('inputs')} = [{inputs}]")

    def write(writer: LoopWriter) -> None:
        outputs = "".join(f"{n.name}, " for n in region.outputs)
        call = f"{writer.object('region', function)}({writer.local('inputs')})"
        writer.add(f"{outputs or '_'} = {call}")

    return Step(region.nodes, write, region.outputs, collect)


def _returned(program: Program, writer: LoopWriter, value: Any, info: Output) -> str:
    text = writer.expression(value)
    param = program.params.get(info.subject) if info.kind == "grad" else None
    if param is None or not param.layout.padded or not isinstance(value, fx.Node):
        return text
    layout = param.layout
    shape = layout.local_shape(rank_on(layout.axis) if layout.world > 1 else 0)
    view = writer.object("local_view", local_view)
    return f"{view}({text}, {writer.object('layout', layout)}, {shape!r})"
