"""Writes: parameters and state change once, after their last read; nobody reads a stale value."""

from torch import fx

from zc.program.lines import Lines, Reading
from zc.program.nodes import input_of
from zc.program.program import Program
from zc.verify.diagnostic import refusal


def check(program: Program, reading: Reading) -> None:
    """Refuse second writes to a parameter or state, and reads of a storage written before.

    A read through the result of the write itself means the new value and is allowed.

    Raises:
        VerifyError: naming the second writer or the reader.
    """
    for lines in reading.values():
        _check_lines(program, lines)


def _check_lines(program: Program, lines: Lines) -> None:
    owned = {
        key: node
        for node, line in lines.items()
        if node.op == "placeholder" and input_of(node).kind in ("param", "state")
        for key in line.keys
    }
    writers: dict[int, fx.Node] = {}
    current: dict[int, set[fx.Node]] = {}
    for node, line in lines.items():
        written = {key for operand in line.written for key in lines[operand].keys}
        for key in written and written & writers.keys() & owned.keys():
            raise _second_write(program, node, writers[key], owned[key])
        for source in line.sources if writers else ():
            for key in lines[source].keys:
                if key not in writers:
                    continue
                _check_read(program, node, source, writers[key], current[key])
                if key in line.keys:
                    current[key].add(node)
        for key in written:
            writers[key], current[key] = node, {node}


def _check_read(
    program: Program, node: fx.Node, source: fx.Node, writer: fx.Node, current: set[fx.Node]
) -> None:
    if source in current:
        return
    raise refusal(
        program,
        node,
        f"%{node.name} reads %{source.name} after %{writer.name} has written to it",
        "write after the last read, or read the result of the write",
    )


def _second_write(program: Program, node: fx.Node, writer: fx.Node, target: fx.Node) -> Exception:
    info = input_of(target)
    return refusal(
        program,
        node,
        f"%{node.name} writes {info.kind} {info.subject!r} a second time, after %{writer.name}",
        "write each parameter and state once, after its last read",
    )
