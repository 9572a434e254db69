"""ZeRO stage 3: nothing computed from parameters alone lives from forward to backward."""

from operator import getitem
from typing import Any

from torch import fx

from zc.program.collectives import is_collective, operands_of
from zc.program.nodes import input_of, tensors_of
from zc.program.program import Program
from zc.program.stamps import BACKWARD, FORWARD, stamp_of
from zc.program.storages import storages_of
from zc.verify.diagnostic import refusal

Params = frozenset[str] | None


def check(program: Program) -> None:
    """Hold a program to ``rules["zero_stage"] == 3``, but for ``rules["kept_gathered"]``.

    Raises:
        VerifyError: naming the backward reader of a parameter value that forward made.
    """
    if program.rules.get("zero_stage") != 3:
        return
    kept = frozenset(program.rules.get("kept_gathered", ()))
    for graph in program.graphs.values():
        _check_graph(program, graph, kept)


def _check_graph(program: Program, graph: fx.Graph, kept: frozenset[str]) -> None:
    inputs = {key for n in graph.find_nodes(op="placeholder") for key in storages_of(n)}
    sources: dict[fx.Node, Params] = {}
    for node in graph.nodes:
        sources[node] = _params_of(node, sources)
        if node.op != "call_function" or stamp_of(node).phase != BACKWARD:
            continue
        for operand in node.all_input_nodes:
            if _outlives(operand, sources[operand], inputs, kept):
                raise _refusal(program, node, operand, sources[operand] or frozenset())


def _params_of(node: fx.Node, sources: dict[fx.Node, Params]) -> Params:
    """The parameters that ``node`` is computed from; ``None`` when it reads anything else."""
    if node.op == "placeholder":
        info = input_of(node)
        return frozenset({info.subject}) if info.kind == "param" else None
    source = node.args[0] if node.target is getitem else None
    if isinstance(source, fx.Node) and is_collective(source):
        item: Any = node.args[1]
        return sources[operands_of(source)[item]]
    found: frozenset[str] = frozenset()
    for operand in node.all_input_nodes:
        params = sources[operand]
        if params is None:
            return None
        found = params if params >= found else found | params
    return found


def _outlives(operand: fx.Node, params: Params, inputs: set[int], kept: frozenset[str]) -> bool:
    if not params or params <= kept or operand.op != "call_function":
        return False
    if stamp_of(operand).phase != FORWARD or not tensors_of(operand):
        return False
    return not inputs.issuperset(storages_of(operand))


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
