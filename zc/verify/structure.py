"""Structure: inputs and outputs match the tables, nodes are defined before use and stamped."""

from typing import Any

from torch import fx

from zc.errors import VerifyError
from zc.program.layout import Layout
from zc.program.lines import Line, Lines, Reading
from zc.program.nodes import tensors_of, value_of
from zc.program.printer import print_type
from zc.program.program import Program
from zc.program.stamps import PHASES
from zc.program.tables import Input, Output, Param
from zc.verify.diagnostic import refusal

_OPS = ("placeholder", "get_attr", "call_function", "output")


def check(program: Program, reading: Reading) -> None:
    """Refuse a program that is not well formed.

    Raises:
        VerifyError: naming the first node that breaks a rule.
    """
    for lines in reading.values():
        _check_order(program, lines)
    _check_inputs(program)
    for name, graph in program.graphs.items():
        if not graph.find_nodes(op="output"):
            raise VerifyError(f"graph {name} returns nothing; end it with graph.output")
    if len(program.graphs) == 1:
        _check_outputs(program, program.output_node())


def _check_order(program: Program, lines: Lines) -> None:
    defined: set[fx.Node] = set()
    last = next(reversed(lines), None)
    for node, line in lines.items():
        if not defined.issuperset(line.sources):
            source = next(source for source in line.sources if source not in defined)
            raise refusal(
                program,
                node,
                f"%{node.name} reads %{source.name} before it is defined",
                "insert a node behind everything it reads",
            )
        if not line.calls:
            _check_kind(program, node, node is last)
        elif not line.formed:
            _check_call(program, node, line)
        defined.add(node)


def _check_kind(program: Program, node: fx.Node, last: bool) -> None:
    """What calls nothing is an input, a constant or the return at the end."""
    if node.op not in _OPS:
        raise refusal(
            program,
            node,
            f"%{node.name} is a {node.op} node",
            "a program calls functions only; insert nodes with Editor.call",
        )
    if node.op == "output" and not last:
        raise refusal(
            program,
            node,
            "the graph returns before its last node",
            "insert nodes before the output node",
        )


def _check_call(program: Program, node: fx.Node, line: Line) -> None:
    """A function of ours or of torch is called, and the node is stamped."""
    if not callable(line.target):
        raise refusal(
            program,
            node,
            f"%{node.name} calls {node.target!r}, which is not a function",
            "call an op of torch.ops",
        )
    if line.stamped is None or not line.stamp.made_by:
        raise refusal(
            program,
            node,
            f"%{node.name} has no stamp of who made it",
            "insert nodes with Editor.call, which stamps them",
        )
    if line.stamp.phase not in PHASES:
        raise refusal(
            program,
            node,
            f"%{node.name} is stamped with unknown phase {line.stamp.phase!r}",
            f"phases are {', '.join(PHASES)}",
        )


def _check_inputs(program: Program) -> None:
    indices: dict[int, fx.Node] = {}
    subjects: dict[tuple[str, str], fx.Node] = {}
    for node in program.placeholders():
        info = node.meta.get("zc_input")
        if not isinstance(info, Input):
            raise refusal(
                program,
                node,
                f"input %{node.name} is bound to nothing",
                "say what it is with set_input",
            )
        _check_subject(program, node, info)
        if info.index is not None and indices.setdefault(info.index, node) is not node:
            raise refusal(
                program,
                node,
                f"inputs %{indices[info.index].name} and %{node.name} are both "
                f"argument {info.index}",
                "give each input its own position",
            )
        key = (info.kind, info.subject)
        if info.kind in ("param", "state") and subjects.setdefault(key, node) is not node:
            raise refusal(
                program,
                node,
                f"{info.kind} {info.subject!r} is bound to %{subjects[key].name} "
                f"and to %{node.name}",
                "let all readers use one input",
            )


def _check_subject(program: Program, node: fx.Node, info: Input) -> None:
    table: dict[str, Any] = program.state if info.kind == "state" else program.params
    if info.kind not in ("param", "grad", "state"):
        return
    if info.subject not in table:
        raise refusal(
            program,
            node,
            f"input %{node.name} is bound to {info.kind} {info.subject!r}, which is in no table",
            "add it to the program's tables",
        )
    if info.kind == "param":
        param = program.params[info.subject]
        _check_stored(program, node, param, f"input %{node.name}", node)


def _check_stored(program: Program, node: fx.Node, param: Param, what: str, value: fx.Node) -> None:
    """The value of a parameter or gradient input or output lies as the layout says."""
    if len(param.layouts) != 1:
        return
    expected = (_stored_shape(param.layout), param.dtype)
    found = [(tuple(t.shape), t.dtype) for t in tensors_of(value)]
    if found != [expected]:
        raise refusal(
            program,
            node,
            f"{what} is {print_type(value_of(value))}, parameter {param.name!r} "
            f"lies at rest as {list(expected[0])} of {str(expected[1]).removeprefix('torch.')}",
            "cast and reduce it to the shard at rest",
        )


def _stored_shape(layout: Layout) -> tuple[int, ...]:
    return layout.shape if layout.replicated else layout.storage_shape


def _check_outputs(program: Program, node: fx.Node) -> None:
    values: Any = node.args[0]
    if not isinstance(values, (list, tuple)) or len(values) != len(program.outputs):
        count = len(values) if isinstance(values, (list, tuple)) else "no list of"
        raise refusal(
            program,
            node,
            f"the graph returns {count} values, the table of outputs has {len(program.outputs)}",
            "change program.outputs together with the output node",
        )
    for position, (value, info) in enumerate(zip(values, program.outputs, strict=True)):
        _check_output(program, node, position, value, info)


def _check_output(program: Program, node: fx.Node, position: int, value: Any, info: Output) -> None:
    if info.kind != "grad":
        return
    if info.subject not in program.params:
        raise refusal(
            program,
            node,
            f"output {position} is the gradient of {info.subject!r}, which is in no table",
            "add it to the program's tables",
        )
    if isinstance(value, fx.Node):
        param = program.params[info.subject]
        _check_stored(program, node, param, f"output {position} (%{value.name})", value)
