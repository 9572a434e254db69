"""Phases: no node reads a value of a later phase, and tangents exist in backward only."""

from torch import fx

from zc.program.lines import Line, Reading
from zc.program.program import Program
from zc.program.stamps import FORWARD, PHASES
from zc.verify.diagnostic import refusal


def check(program: Program, reading: Reading) -> None:
    """Refuse a node that reads a value of a later phase.

    Raises:
        VerifyError: naming the reader.
    """
    for lines in reading.values():
        for line in lines.values():
            for source in line.sources if line.calls else ():
                if lines[source].phase != line.phase:
                    _check_read(program, line, lines[source])
    if len(program.graphs) == 1 and program.level == 1:
        _check_forward_outputs(program, reading)


def _check_read(program: Program, reader: Line, read: Line) -> None:
    (phase, made), (node, source) = (reader.phase, read.phase), (reader.node, read.node)
    if PHASES.index(made) > PHASES.index(phase):
        kind = "tangent" if source.op == "placeholder" else f"{made} value"
        raise refusal(
            program,
            node,
            f"{phase} node %{node.name} reads {kind} %{source.name}",
            f"stamp the reader {made}, or compute what it reads in {phase}",
        )


def _check_forward_outputs(program: Program, reading: Reading) -> None:
    """The leading outputs, which the forward half returns, are forward values."""
    (lines,) = reading.values()
    for position, value in enumerate(program.output_values()[: program.forward_outputs]):
        if isinstance(value, fx.Node) and lines[value].phase != FORWARD:
            raise refusal(
                program,
                program.output_node(),
                f"output {position} (%{value.name}) of the forward "
                f"half is a {lines[value].phase} value",
                "the first program.forward_outputs outputs are made in forward",
            )
