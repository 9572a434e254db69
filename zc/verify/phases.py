"""Phases: no node reads a value of a later phase, and tangents exist in backward only."""

from torch import fx

from zc.program.nodes import input_of
from zc.program.program import Program
from zc.program.stamps import FORWARD, PHASES, stamp_of
from zc.verify.diagnostic import refusal


def check(program: Program) -> None:
    """Refuse a node that reads a value of a later phase.

    Raises:
        VerifyError: naming the reader.
    """
    for node in program.nodes():
        if node.op == "call_function":
            for source in node.all_input_nodes:
                _check_read(program, node, source)
    if len(program.graphs) == 1 and program.level == 1:
        _check_forward_outputs(program)


def _check_read(program: Program, node: fx.Node, source: fx.Node) -> None:
    phase, made = stamp_of(node).phase, _phase_of(source)
    if made != phase and PHASES.index(made) > PHASES.index(phase):
        kind = "tangent" if source.op == "placeholder" else f"{made} value"
        raise refusal(
            program,
            node,
            f"{phase} node %{node.name} reads {kind} %{source.name}",
            f"stamp the reader {made}, or compute what it reads in {phase}",
        )


def _phase_of(node: fx.Node) -> str:
    if node.op == "call_function":
        return stamp_of(node).phase
    if node.op == "placeholder" and input_of(node).kind == "tangent":
        return "backward"
    return FORWARD


def _check_forward_outputs(program: Program) -> None:
    """The leading outputs, which the forward half returns, are forward values."""
    for position, value in enumerate(program.output_values()[: program.forward_outputs]):
        if isinstance(value, fx.Node) and _phase_of(value) != FORWARD:
            raise refusal(
                program,
                program.output_node(),
                f"output {position} (%{value.name}) of the forward "
                f"half is a {_phase_of(value)} value",
                "the first program.forward_outputs outputs are made in forward",
            )
