"""Gathers of parameters: the right shard, whole, in the dtype that travels, and not for nothing."""

from typing import Any

import torch
from torch import fx

from zc.program.collectives import (
    COLLECTIVES,
    is_coalesced,
    operands_of,
    start_of,
)
from zc.program.lines import Lines, Reading
from zc.program.nodes import input_of, tensors_of, value_of
from zc.program.printer import print_arg, print_type
from zc.program.program import Program
from zc.program.stamps import UPDATE, stamp_of
from zc.program.tables import Param
from zc.verify.diagnostic import refusal


def check(program: Program, reading: Reading) -> None:
    """Refuse gathers of parameters that bring the wrong thing or that nobody reads.

    Raises:
        VerifyError: naming the gather's wait.
    """
    for lines in reading.values():
        waits = [node for node, line in lines.items() if line.waits]
        live = _live_nodes(lines) if waits else set()
        for node in waits:
            start = _gather_behind(node)
            param = program.params.get(stamp_of(node).param)
            if start is None or param is None or len(param.layouts) != 1 or _in_update(node):
                continue
            _check_source(program, node, start, param)
            _check_full(program, node, param)
            if node not in live:
                raise refusal(
                    program,
                    node,
                    f"%{node.name}, parameter {param.name!r} gathered, is never read",
                    "gather only what the program reads (edit.erase_dead)",
                )


def _in_update(node: fx.Node) -> bool:
    """What an optimizer gathers on behalf of a parameter need not be the parameter itself."""
    return stamp_of(node).phase == UPDATE


def _gather_behind(node: fx.Node) -> fx.Node | None:
    """The all-gather that the wait ``node`` is for, if it is."""
    start = start_of(node)
    gathers = start is not None and COLLECTIVES[start.target].op == "all_gather"
    return start if gathers else None


def _check_full(program: Program, node: fx.Node, param: Param) -> None:
    first, *rest = param.layout.storage_shape or (1,)
    expected = (param.layout.world * first, *rest)
    dtype = travel_dtype(param)
    (full,) = tensors_of(node)
    if tuple(full.shape) != expected or full.dtype.itemsize > dtype.itemsize:
        raise refusal(
            program,
            node,
            f"%{node.name} is {print_type(value_of(node))}, parameter "
            f"{param.name!r} gathered is {print_arg(dtype)}{list(expected)}",
            "gather the padded shard, cast to compute_dtype first where that is smaller",
        )


def travel_dtype(param: Param) -> torch.dtype:
    """The smaller of the dtypes at rest and in compute: no gather moves more bytes than it has."""
    smaller = param.compute_dtype.itemsize < param.dtype.itemsize
    return param.compute_dtype if smaller else param.dtype


def _check_source(program: Program, node: fx.Node, start: fx.Node, param: Param) -> None:
    source = _operand_of(node, start)
    while source.op == "call_function" and len(source.all_input_nodes) == 1:
        source = source.all_input_nodes[0]
    if source.op != "placeholder":
        return
    info = input_of(source)
    gathered = info.subject if info.kind == "param" else stamp_of(source).param
    if gathered and gathered != param.name:
        raise refusal(
            program,
            node,
            f"%{node.name} is stamped as parameter {param.name!r} and gathers the "
            f"shard of {gathered!r}",
            "gather the parameter that the readers mean",
        )


def _operand_of(node: fx.Node, start: fx.Node) -> fx.Node:
    operands = operands_of(start)
    item: Any = node.all_input_nodes[0]
    return operands[item.args[1]] if is_coalesced(start) else operands[0]


def _live_nodes(lines: Lines) -> set[fx.Node]:
    """Nodes whose value reaches an output, a write or an optimizer."""
    live: set[fx.Node] = set()
    for node, line in reversed(lines.items()):
        if line.ends or node in live:
            live.add(node)
            live.update(line.sources)
    return live
