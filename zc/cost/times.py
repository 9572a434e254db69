"""Seconds that each node keeps its lane busy on a device.

An op takes the longer of its arithmetic and its memory traffic, and a fixed time (the roofline of
Williams, Waterman and Patterson, CACM 2009). Where a program is compiled, ops between two effects
that are no matrix products run as one pass over memory: what one of them hands to another costs
nothing, and only results that reach memory take the fixed time of a kernel. Each compiled region
takes a time of its own on top.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from operator import is_

from torch import fx

from zc.cost.device import Device
from zc.cost.work import Work, work_of
from zc.program.collectives import collective_of, is_collective
from zc.program.effects import effects_of
from zc.program.kernels import FUSED_UPDATE, operand_lists, spec_of
from zc.program.lines import Line, Lines
from zc.program.mesh import Mesh
from zc.program.nodes import is_view, tensors_of, value_of
from zc.program.sizes import sizes_of

Runs = dict[fx.Node, int]


@dataclass(frozen=True)
class Works:
    """What the nodes of a graph do, in whatever order they stand, and which of them are effects."""

    of: Mapping[fx.Node, Work]
    effects: AbstractSet[fx.Node]


def works_of(graph: fx.Graph) -> Works:
    """What the nodes of ``graph`` do."""
    return Works({node: work(node) for node in graph.nodes}, effects_of(graph))


def works_of_lines(lines: Lines, effects: AbstractSet[fx.Node]) -> Works:
    """The same of what was read of a graph; worked out once for the same types of operands."""
    return Works({node: _work_of_line(line) for node, line in lines.items()}, effects)


def _work_of_line(line: Line) -> Work:
    types = tuple(map(value_of, line.sources))  # its own is part of the line
    known, found = line.work
    if found is None or not all(map(is_, known, types)):
        found = work(line.node)
        line.work = types, found
    return found


def node_seconds(
    graph: fx.Graph, mesh: Mesh, device: Device, *, fused: bool, known: Works | None = None
) -> dict[fx.Node, float]:
    """Seconds of every node of ``graph``; inputs, views and waits take none by themselves.

    Args:
        graph: of a physical program.
        mesh: gives the size of groups.
        device: what it runs on.
        fused: whether regions are compiled (executor ``inductor``).
        known: what ``works_of`` says of the same nodes, in this order or another.
    """
    known = known or works_of(graph)
    works = {node: known.of[node] for node in graph.nodes}
    runs = fusable_runs(works, known.effects) if fused else {}
    found = {}
    for node, done in works.items():
        if is_collective(node):
            row = collective_of(node, mesh)
            found[node] = device.collective_seconds(row.spec.op, row.group_size, row.wire_bytes)
        else:
            found[node] = compute_seconds(in_memory(node, done, runs), device, node in runs)
    for node in first_of_regions(works, known.effects) if fused else ():
        found[node] += device.region_seconds
    return found


def compute_seconds(done: Work, device: Device, fused: bool = False) -> float:
    """Seconds of ``done`` on ``device``: nothing for nothing, else the roofline and a launch.

    What is ``fused`` is launched with the one that writes the result.
    """
    traffic = done.read + done.written
    if not traffic:
        return 0.0
    memory = device.memory_seconds(traffic)
    if not done.matrix:
        return memory + (device.op_seconds if done.written or not fused else 0.0)
    rate = device.flop_rate(done.dtype) * (device.attention if done.attention else 1.0)
    return max(device.op_seconds, device.product_seconds) + max(done.flops / rate, memory)


def first_of_regions(works: Mapping[fx.Node, Work], effects: AbstractSet[fx.Node]) -> list[fx.Node]:
    """The first node of each compiled region that does any work."""
    found, inside = [], False
    for node, done in works.items():
        if node in effects:
            inside = False
        elif not inside and done.read + done.written:
            found.append(node)
            inside = True
    return found


def work(node: fx.Node) -> Work:
    """The work of ``node``, generated kernels included."""
    if node.target is not FUSED_UPDATE:
        return work_of(node)
    spec = spec_of(str(node.args[3]))
    written, read = node.args[0], node.args[1]
    first = operand_lists(spec, written, read)[0]  # type: ignore[arg-type]
    numel = sum(t.numel() for item in first for t in tensors_of(item))
    bytes_read, bytes_written = spec.bytes_per_element()
    return Work(
        len(spec.body) * numel, int(bytes_read * numel), int(bytes_written * numel),
        dtype=spec.compute_dtype,
    )  # fmt: skip


def fusable_runs(works: Mapping[fx.Node, Work], effects: AbstractSet[fx.Node]) -> Runs:
    """For each node that a compiler fuses with its neighbours, the number of its region."""
    found: Runs = {}
    run = 0
    for node, done in works.items():
        if node.op != "call_function":
            continue
        if node in effects:
            run += 1
        elif not done.matrix:
            found[node] = run
    return found


def in_memory(node: fx.Node, done: Work, runs: Runs) -> Work:
    """``done`` without the bytes that a fused pass over memory keeps in registers."""
    if node not in runs or is_view(node):
        return done
    mine = runs[node]
    whole = outside = 0
    for source in node.all_input_nodes:
        size = sizes_of(source).nbytes
        whole += size
        outside += size if runs.get(_behind_views(source)) != mine else 0
    read = done.read * outside // whole if whole else 0
    written = 0 if _read_only_in(node, mine, runs) else done.written
    if read == done.read and written == done.written:
        return done
    return replace(done, read=read, written=written)


def _behind_views(node: fx.Node) -> fx.Node:
    """The node whose memory ``node`` shows."""
    while node.op == "call_function" and is_view(node) and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def _read_only_in(node: fx.Node, run: int, runs: Runs) -> bool:
    """Whether ``node`` is read, and only by fused nodes of the region ``run``."""
    readers = list(node.users)
    for reader in readers:  # grows meanwhile
        if reader.op == "call_function" and is_view(reader):
            readers += reader.users
    return bool(readers) and all(runs.get(reader) == run for reader in readers)
