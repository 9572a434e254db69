"""ZeRO stage 3: nothing computed from parameters alone lives from forward to backward."""

from operator import getitem
from typing import Any

from torch import fx

from zc.program.collectives import is_collective, operands_of
from zc.program.lines import Line, Lines, Reading
from zc.program.nodes import input_of, tensors_of
from zc.program.program import Program
from zc.program.stamps import BACKWARD, FORWARD
from zc.verify.diagnostic import refusal

Params = frozenset[str] | None


def check(program: Program, reading: Reading) -> None:
    """Hold a program to ``rules["zero_stage"] == 3``, but for ``rules["kept_gathered"]``.

    Raises:
        VerifyError: naming the backward reader of a parameter value that forward made.
    """
    if program.rules.get("zero_stage") != 3:
        return
    kept = frozenset(program.rules.get("kept_gathered", ()))
    for lines in reading.values():
        _check_lines(program, lines, kept)


def _check_lines(program: Program, lines: Lines, kept: frozenset[str]) -> None:
    placeholders = (line for node, line in lines.items() if node.op == "placeholder")
    inputs = {key for line in placeholders for key in line.keys}
    sources: dict[fx.Node, Params] = {}
    for node, line in lines.items():
        sources[node] = _params_of(line, sources)
        if not line.calls or line.phase != BACKWARD:
            continue
        for operand in line.sources:
            params = sources[operand]
            if params and _outlives(lines[operand], params, inputs, kept):
                raise _refusal(program, node, operand, params)


def _params_of(line: Line, sources: dict[fx.Node, Params]) -> Params:
    """The parameters that a node is computed from; ``None`` when it reads anything else."""
    if line.node.op == "placeholder":
        info = input_of(line.node)
        return frozenset({info.subject}) if info.kind == "param" else None
    source = line.args[0] if line.target is getitem else None
    if isinstance(source, fx.Node) and is_collective(source):
        item: Any = line.args[1]
        return sources[operands_of(source)[item]]
    found: frozenset[str] = frozenset()
    for operand in line.sources:
        params = sources[operand]
        if params is None:
            return None
        found = params if params >= found else found | params
    return found


def _outlives(
    operand: Line, params: frozenset[str], inputs: set[int], kept: frozenset[str]
) -> bool:
    if params <= kept or not operand.calls or operand.phase != FORWARD:
        return False
    return bool(tensors_of(operand.node)) and not inputs.issuperset(operand.keys)


def _refusal(
    program: Program, node: fx.Node, operand: fx.Node, params: frozenset[str]
) -> Exception:
    names = ", ".join(repr(name) for name in sorted(params)[:3])
    return refusal(
        program,
        node,
        f"%{operand.name}, computed in forward from parameter {names} alone, is "
        f"kept for %{node.name}, and zero_stage is 3",
        "gather again in backward, or name the parameter in rules['kept_gathered']",
    )
