"""Loops over micro-batches: marks in pairs, values that stay inside, collectives that end there."""

from torch import fx

from zc.program.collectives import is_collective, is_wait
from zc.program.lines import Lines, Reading
from zc.program.loops import BEGIN, END, Loop, loop_by_node, loops_of
from zc.program.nodes import input_of, tensors_of
from zc.program.program import Program
from zc.program.storages import storages_of, written_operands
from zc.verify.diagnostic import refusal


def check(program: Program, reading: Reading) -> None:
    """Refuse loops that no program means.

    Raises:
        VerifyError: naming the mark, the reader, the wait or the write.
    """
    for name, graph in program.graphs.items():
        _check_marks(program, reading[name])
        loops = loop_by_node(graph)
        if not loops:
            continue
        older = {loop.begin: _storages_before(loop) for loop in loops_of(graph)}
        for node in graph.nodes:
            for source in node.all_input_nodes:
                _check_read(program, node, source, loops, older)
        for loop in loops_of(graph):
            _check_writes(program, graph, loop)


def _check_marks(program: Program, lines: Lines) -> None:
    """Begins and ends take turns; each end names the begin before it."""
    opened: fx.Node | None = None
    for node, line in lines.items():
        if line.target is BEGIN:
            if opened is not None:
                what = f"loop %{node.name} begins inside loop %{opened.name}"
                raise refusal(program, node, what, "end a loop before the next one begins")
            opened = node
        elif line.target is END:
            if node.args[0] is not opened:
                what = f"%{node.name} ends a loop that has not begun, or has ended"
                raise refusal(program, node, what, "end each loop once, behind its begin")
            opened = None
    if opened is not None:
        what = f"loop %{opened.name} never ends"
        raise refusal(program, opened, what, "put a zc.micro_end behind its body")


def _check_read(
    program: Program,
    node: fx.Node,
    source: fx.Node,
    loops: dict[fx.Node, Loop],
    older: dict[fx.Node, set[int]],
) -> None:
    loop, here = loops.get(source), loops.get(node)
    if is_wait(node) and loop is not here and is_collective(source):
        what = f"%{node.name} waits for %{source.name} on the other side of a loop's mark"
        raise refusal(program, node, what, "start and wait in one turn, or outside of the loop")
    if loop is None or loop is here:
        return
    if not tensors_of(source) or not older[loop.begin].issuperset(storages_of(source)):
        what = f"%{node.name} reads %{source.name}, a value of loop %{loop.begin.name}, behind it"
        remedy = "add it to a zc.accumulator from before the loop, and read the result of that"
        raise refusal(program, node, what, remedy)


def _storages_before(loop: Loop) -> set[int]:
    found: set[int] = set()
    node = loop.begin.prev
    while node.op != "root":
        found.update(storages_of(node))
        node = node.prev
    return found


def _check_writes(program: Program, graph: fx.Graph, loop: Loop) -> None:
    """Parameters and their optimizer's state change once a step, not once a micro-batch."""
    owned = {
        key: node
        for node in graph.find_nodes(op="placeholder")
        if input_of(node).kind in ("param", "state")
        for key in storages_of(node)
    }
    for node in loop.body:
        for key in (k for target in written_operands(node) for k in storages_of(target)):
            if key in owned:
                info = input_of(owned[key])
                what = f"%{node.name} writes {info.kind} {info.subject!r} at each turn of a loop"
                raise refusal(program, node, what, "write it behind the loop")
