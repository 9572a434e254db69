"""Collectives: axis and sizes are right, and each is waited for once, before it is read."""

from operator import getitem
from typing import Any

from torch import fx

from zc.program.collectives import (
    C10D,
    COLLECTIVES,
    is_coalesced,
    is_wait,
    start_of,
)
from zc.program.lines import Lines, Reading
from zc.program.nodes import tensors_of
from zc.program.program import Program
from zc.program.storages import storages_of
from zc.verify.diagnostic import refusal

SIZE_ARGUMENT = {
    C10D.all_gather_into_tensor.default: 1,
    C10D.all_gather_into_tensor_coalesced.default: 1,
    C10D.reduce_scatter_tensor.default: 2,
    C10D.reduce_scatter_tensor_coalesced.default: 2,
}
_ROWS_DIVIDE = ("reduce_scatter",)


def check(program: Program, reading: Reading) -> None:
    """Refuse collectives that would hang, fail or be read too early.

    Raises:
        VerifyError: naming the collective, its wait or its reader.
    """
    for lines in reading.values():
        for line in lines.values():
            if not line.communicates:
                continue
            if line.starts:
                _check_group(program, line.node)
                _check_operands(program, line.node)
                _check_waits(program, line.node)
            elif line.waits:
                _check_wait(program, line.node)
            else:
                raise _unknown(program, line.node)
        _check_writes_in_flight(program, lines)


def _unknown(program: Program, node: fx.Node) -> Exception:
    return refusal(
        program,
        node,
        f"%{node.name} communicates and is not in the table of collectives",
        "add its op to zc.program.collectives",
    )


def _check_group(program: Program, node: fx.Node) -> None:
    axis = node.args[COLLECTIVES[node.target].axis_arg]
    sizes: dict[Any, int] = dict(program.mesh.axes)
    if axis not in sizes:
        raise refusal(
            program,
            node,
            f"%{node.name} communicates along axis {axis!r}, the mesh is {program.mesh}",
            "use an axis of program.mesh",
        )
    position = SIZE_ARGUMENT.get(node.target)
    if position is not None and node.args[position] != sizes[axis]:
        raise refusal(
            program,
            node,
            f"%{node.name} is for {node.args[position]} ranks, axis {axis!r} has {sizes[axis]}",
            "take the group size from program.mesh",
        )


def _check_operands(program: Program, node: fx.Node) -> None:
    spec = COLLECTIVES[node.target]
    size = dict(program.mesh.axes)[str(node.args[spec.axis_arg])]
    for source in node.all_input_nodes:
        for tensor in tensors_of(source):
            if not tensor.is_contiguous():
                raise refusal(
                    program,
                    node,
                    f"operand %{source.name} of %{node.name} is not contiguous: "
                    f"strides {list(tensor.stride())}",
                    "clone it to a contiguous tensor first",
                )
            if spec.op in _ROWS_DIVIDE and (tensor.ndim == 0 or tensor.shape[0] % size):
                raise refusal(
                    program,
                    node,
                    f"operand %{source.name} of %{node.name} has shape "
                    f"{list(tensor.shape)}, whose rows do not divide by {size} ranks",
                    "pad it first (zc.program.packing.pack)",
                )


def _check_waits(program: Program, node: fx.Node) -> None:
    if not is_coalesced(node):
        _check_result(program, node, node)
        return
    items: dict[Any, fx.Node] = {}
    for user in node.users:
        if user.target is not getitem:
            raise _read_early(program, node, user)
        if items.setdefault(user.args[1], user) is not user:
            raise refusal(
                program,
                user,
                f"%{user.name} takes item {user.args[1]} of %{node.name} a second time",
                "take each result once and let all readers use its wait",
            )
        _check_result(program, node, user)
    missing = [i for i in range(len(tensors_of(node))) if i not in items]
    if missing:
        raise _never(program, node, f"result {missing[0]} of %{node.name}")


def _check_result(program: Program, start: fx.Node, result: fx.Node) -> None:
    waits = [user for user in result.users if is_wait(user)]
    for user in result.users:
        if user not in waits:
            raise _read_early(program, start, user)
    if not waits:
        raise _never(program, start, f"%{result.name}")
    if len(waits) > 1:
        second = sorted(waits)[1]
        raise refusal(
            program,
            second,
            f"%{second.name} waits a second time for %{result.name}",
            "wait for each collective once and let all readers use that value",
        )


def _never(program: Program, node: fx.Node, what: str) -> Exception:
    return refusal(
        program,
        node,
        f"{what} is never waited for",
        "insert c10d.wait_tensor before its first read",
    )


def _read_early(program: Program, start: fx.Node, reader: fx.Node) -> Exception:
    return refusal(
        program,
        reader,
        f"%{reader.name} reads collective %{start.name} without waiting for it",
        "read the result of its c10d.wait_tensor",
    )


def _check_wait(program: Program, node: fx.Node) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if start_of(node) is None:
        raise refusal(
            program,
            node,
            f"%{node.name} waits for %{source.name}, which is not a collective",
            "wait for collectives only, each once",
        )


def _check_writes_in_flight(program: Program, lines: Lines) -> None:
    """Nobody writes what a collective reads or fills between its start and its first wait.

    The first wait for an item of a bucket completes all of it.
    """
    flying: dict[int, fx.Node] = {}
    pending: set[fx.Node | None] = set()
    for node, line in lines.items():
        for key in (k for operand in line.written for k in lines[operand].keys):
            if key in flying:
                raise refusal(
                    program,
                    node,
                    f"%{node.name} writes what collective %{flying[key].name} is using",
                    "write after its wait",
                )
        if line.starts:
            flying |= dict.fromkeys(_storages_used(node), node)
            pending.add(node)
        elif line.waits and start_of(node) in pending:
            _land(start_of(node), flying)
            pending.discard(start_of(node))


def _storages_used(node: fx.Node) -> list[int]:
    return [key for n in (node, *node.all_input_nodes) for key in storages_of(n)]


def _land(start: fx.Node | None, flying: dict[int, fx.Node]) -> None:
    for key in _storages_used(start) if start is not None else ():
        if flying.get(key) is start:
            del flying[key]
