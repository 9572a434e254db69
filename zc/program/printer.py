"""Printed IR: deterministic text, one node a line; an interface that golden tests hold on to.

program train.py:12 step (dp=4)
graph step {
  input %w0: f32[2, 4]  {param 'w0' shard=dp:0}
  %w0_gather: f32[8, 4] = c10d.all_gather_into_tensor(%w0, 4, "dp")
  %w0_full: f32[8, 4] = c10d.wait_tensor(%w0_gather)
  ...
  -- backward --
  return %loss, %w0_grad {grad 'w0'}
}

The body of a loop over micro-batches is indented.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from zc.program.loops import loop_by_node
from zc.program.nodes import input_of, value_of
from zc.program.stamps import stamp_of
from zc.program.tables import Output
from zc.program.updates import UpdateClass, is_marker, is_number

if TYPE_CHECKING:
    from zc.program.lines import Line, Lines
    from zc.program.program import Program

_DTYPES = {
    torch.float32: "f32", torch.float64: "f64", torch.float16: "f16", torch.bfloat16: "bf16",
    torch.int64: "i64", torch.int32: "i32", torch.int16: "i16", torch.int8: "i8",
    torch.uint8: "u8", torch.bool: "bool", torch.complex64: "c64", torch.complex128: "c128",
}  # fmt: skip
_NAMESPACES = {"_c10d_functional": "c10d"}


def print_program(program: Program) -> str:
    """The whole program as text, ending in a newline."""
    lines = [f"program {program.name} ({program.mesh})"]
    for name, graph in program.graphs.items():
        known = program.lines.get(name, {})
        lines += [f"graph {name} {{", *_graph_lines(program, graph, known), "}"]
    if any(is_marker(node) for node in program.nodes()):
        lines += [line for u in program.updates for kind in u.classes for line in _body_lines(kind)]
    return "\n".join(lines) + "\n"


def _graph_lines(program: Program, graph: fx.Graph, known: Lines) -> list[str]:
    lines: list[str] = []
    phase = "forward"
    inside = loop_by_node(graph)
    for node in graph.nodes:
        indent = "    " if node in inside else "  "
        if node.op == "call_function" and stamp_of(node).phase != phase:
            phase = stamp_of(node).phase
            lines.append(f"{indent}-- {phase} --")
        read = known.get(node) if node.op == "call_function" else None
        lines.append(indent + (print_node(node, program) if read is None else _again(read)))
    return lines


def _again(read: Line) -> str:
    """The text of a call, which is kept for as long as the call says the same."""
    if not read.holds():
        return print_node(read.node)
    read.text = read.text or print_node(read.node)
    return read.text


def _body_lines(kind: UpdateClass) -> list[str]:
    """The traced step of a class, in whole shapes; named as the parameters that it steps."""
    body = kind.body
    names = ", ".join(repr(name) for name in kind.names())
    lines = [f"update {body.name} {{  # {names}"]
    for node, slot in zip(body.placeholders(), body.inputs, strict=True):
        lines.append(f"  input %{node.name}: {print_type(value_of(node))}  {{{slot.role}}}")
    for node in body.graph.nodes:
        if node.op == "call_function":
            lines.append("  " + print_node(node))
    writes = zip(body.writes, body.results(), strict=True)
    lines += [f"  {slot.key or slot.role} <- %{node.name}" for slot, node in writes]
    return [*lines, "}"]


def print_node(node: fx.Node, program: Program | None = None) -> str:
    """One node as it stands in printed IR."""
    if node.op == "placeholder":
        return f"input %{node.name}: {print_type(value_of(node))}{_input_note(node, program)}"
    if node.op == "output":
        return "return " + _print_outputs(node, program.outputs if program else [])
    if node.op == "get_attr":
        return f"%{node.name}: {print_type(value_of(node))} = constant {node.target}"
    args = list(map(print_arg, node.args))
    args += [f"{k}={print_arg(v)}" for k, v in node.kwargs.items() if v is not None]
    call = f"{print_target(node.target)}({', '.join(args)})"
    note = "  {recompute}" if stamp_of(node).recompute else ""
    return f"%{node.name}: {print_type(value_of(node))} = {call}{note}"


@cache
def print_target(target: Any) -> str:
    """Name of an op: ``aten.mm``, ``aten.add.Tensor``, ``c10d.wait_tensor``."""
    if isinstance(target, torch._ops.OpOverload):
        namespace, name = target._schema.name.split("::")
        overload = f".{target._schema.overload_name}" if target._schema.overload_name else ""
        return f"{_NAMESPACES.get(namespace, namespace)}.{name}{overload}"
    return getattr(target, "__name__", str(target))


def print_type(value: Any) -> str:
    """Type of a node: ``f32[8, 4]``, a tuple of such, ``sym s0`` or ``opaque``."""
    if isinstance(value, torch.Tensor):
        sizes = ", ".join(map(str, value.shape))
        return f"{print_arg(value.dtype)}[{sizes}]"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(print_type(v) for v in value) + ")"
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return f"sym {value}"
    if is_number(value):
        return "number"
    return "none" if value is None else "opaque"


def print_arg(arg: Any) -> str:
    """An argument: nodes as ``%name``, strings quoted, dtypes by their short names."""
    if isinstance(arg, fx.Node):
        return f"%{arg.name}"
    if isinstance(arg, (list, tuple)):
        return "[" + ", ".join(print_arg(a) for a in arg) + "]"
    if isinstance(arg, torch.dtype):
        return _DTYPES.get(arg, str(arg).removeprefix("torch."))
    if isinstance(arg, str):
        return f'"{arg}"'
    if isinstance(arg, torch.device):
        return str(arg)
    return "none" if arg is None else str(arg).removeprefix("torch.")


def _input_note(node: fx.Node, program: Program | None) -> str:
    info = input_of(node)
    if info.kind == "user":
        return ""
    note = f"{info.kind} {info.subject!r}" if info.subject else info.kind
    if info.kind == "param" and program is not None:
        for axis, layout in program.params[info.subject].layouts.items():
            note += f" replicated={axis}" if layout.replicated else f" shard={axis}:{layout.dim}"
    return f"  {{{note}}}"


def _print_outputs(node: fx.Node, outputs: list[Output]) -> str:
    values: Any = node.args[0]
    parts = []
    for i, value in enumerate(values):
        info = outputs[i] if i < len(outputs) else None
        note = f" {{grad {info.subject!r}}}" if info is not None and info.kind == "grad" else ""
        parts.append(print_arg(value) + note)
    return ", ".join(parts)
