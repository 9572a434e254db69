"""The lockstep interpreter: one program on W simulated ranks in one process, node by node.

It is the reference meaning of a program. Compute nodes run on every rank in turn; a collective
takes the operands of all ranks of its group at once, adds in rank order, and is done when it
starts, so a wait returns its operand. Markers of a logical program mean what ``zc.state.markers``
does on real groups. Ranks are numbered row-major over the axes of the mesh.
"""

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from zc.errors import ExecutionError
from zc.program.collectives import is_collective, is_wait
from zc.program.liveness import last_uses
from zc.program.loops import BEGIN, END, as_executed
from zc.program.mesh import Mesh
from zc.program.nodes import input_of
from zc.program.packing import pack, run_op
from zc.program.printer import print_node
from zc.program.program import Program
from zc.program.stamps import stamp_of
from zc.run.meanings import Disagreement, axis_of, group_size_of, is_joint, meaning_of

Values = dict[fx.Node, Any]


class LockstepError(ExecutionError):
    """A node that failed on a simulated rank, or a collective on which the ranks disagree."""


def lockstep(program: Program, rank_inputs: list[list[Any]]) -> list[list[Any]]:
    """Run the one graph of ``program`` on ``len(rank_inputs)`` simulated ranks.

    Args:
        program: logical or physical.
        rank_inputs: for each rank, the values of the placeholders in order, late-bound state
            included. Inputs that the program writes are updated in place.

    Returns:
        For each rank, the values that the program returns.

    Raises:
        LockstepError: when the inputs do not fit the program or the mesh, an op fails, or the ranks
            of a group disagree on a collective; it names the node.
    """
    _check_inputs(program, rank_inputs)
    ranks: list[Values] = [
        dict(zip(program.placeholders(), inputs, strict=True)) for inputs in rank_inputs
    ]
    dying = last_uses(program.graph)
    for node, turn in as_executed(program.graph):
        if node.op == "output":
            break
        if node.target in (BEGIN, END):
            for values in ranks:
                values[node] = turn
        else:
            _run_node(program, node, ranks)
        for value in dying.get(node, []):
            for values in ranks:
                del values[value]
    result = program.output_node().args[0]
    return [map_arg(result, values.__getitem__) for values in ranks]  # type: ignore[misc]


def shard_inputs(
    program: Program, params: dict[str, torch.Tensor], rank: int, others: dict[str, Any]
) -> list[Any]:
    """The inputs of one simulated rank, in order.

    Args:
        program: the program to run.
        params: full parameters by name; each rank gets its own copy of its block, padded.
        rank: which rank, row-major over the mesh.
        others: every other input, by its subject or by the name of its placeholder.
    """
    inputs = []
    for node in program.placeholders():
        info = input_of(node)
        if info.kind == "param":
            inputs.append(_block(program, info.subject, params[info.subject], rank))
        else:
            inputs.append(others[info.subject] if info.subject in others else others[node.name])
    return inputs


def coordinate(mesh: Mesh, rank: int, axis: str) -> int:
    """Position of ``rank`` along ``axis``; 0 for an axis that ``mesh`` does not have."""
    for name, size in reversed(mesh.axes):
        rank, position = divmod(rank, size)
        if name == axis:
            return position
    return 0


def groups_along(mesh: Mesh, axis: str) -> Iterator[list[int]]:
    """The groups of ranks that communicate along ``axis``, each in rank order."""
    names = [name for name, _ in mesh.axes]
    world = prod(size for _, size in mesh.axes)
    if axis not in names:
        yield from ([rank] for rank in range(world))
        return
    stride = prod(size for _, size in mesh.axes[names.index(axis) + 1 :])
    size = mesh.size(axis)
    for first in range(world):
        if coordinate(mesh, first, axis) == 0:
            yield [first + i * stride for i in range(size)]


def _block(program: Program, name: str, full: torch.Tensor, rank: int) -> torch.Tensor:
    param = program.params[name]
    layout = param.layout
    full = full.detach().to(param.dtype)
    if layout.replicated:
        return full.clone()
    packed = pack(run_op, full, layout, contiguous=full.is_contiguous())
    return packed.chunk(layout.world)[coordinate(program.mesh, rank, layout.axis)].clone()


def _check_inputs(program: Program, rank_inputs: list[list[Any]]) -> None:
    world = prod(size for _, size in program.mesh.axes)
    if len(rank_inputs) != world:
        raise LockstepError(
            f"inputs of {len(rank_inputs)} ranks for a program on {world} ({program.mesh}); "
            f"give lockstep one list of inputs for each rank"
        )
    expected = len(program.placeholders())
    for rank, inputs in enumerate(rank_inputs):
        if len(inputs) != expected:
            raise LockstepError(
                f"rank {rank} has {len(inputs)} inputs for {expected} placeholders; give lockstep "
                f"a value for each, late-bound state included"
            )


def _run_node(program: Program, node: fx.Node, ranks: list[Values]) -> None:
    if node.op == "placeholder":
        return
    if is_joint(node):
        _run_joint(program, node, ranks)
        return
    for rank, values in enumerate(ranks):
        values[node] = _run_alone(program, node, rank, values)


def _run_alone(program: Program, node: fx.Node, rank: int, values: Values) -> Any:
    if node.op == "get_attr":
        return program.constants[str(node.target)]
    args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)  # type: ignore[misc]
    if is_wait(node):
        return args[0]
    try:
        with torch.no_grad():
            return node.target(*args, **kwargs)  # type: ignore[operator]
    except Exception as error:
        raise _error(program, node, f"failed on rank {rank}: {error}") from error


def _run_joint(program: Program, node: fx.Node, ranks: list[Values]) -> None:
    """Run a collective or a marker on every group along its axis."""
    axis, meaning = axis_of(node), meaning_of(node)
    for group in groups_along(program.mesh, axis):
        claimed = group_size_of(node)
        if claimed not in (None, len(group)):
            raise _error(program, node, f"is for {claimed} ranks, axis '{axis}' has {len(group)}")
        calls = [map_arg((node.args, node.kwargs), ranks[r].__getitem__) for r in group]
        try:
            with torch.no_grad():
                results = meaning([args for args, _ in calls])  # type: ignore[misc]
        except Disagreement as error:
            raise _error(program, node, f"disagrees on ranks {group}: {error}") from error
        for rank, result in zip(group, results, strict=True):
            ranks[rank][node] = result


def _error(program: Program, node: fx.Node, what: str) -> LockstepError:
    stamp = stamp_of(node)
    kind = "collective " if is_collective(node) else ""
    place = f" ({stamp.source})" if stamp.source else ""
    return LockstepError(
        f"{kind}%{node.name} {what}\n  {stamp.phase}: {print_node(node, program)}{place}\n"
        f"run zc.verify.verify(program) after each pass to find the pass that broke it"
    )
