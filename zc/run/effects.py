"""How one effect of the loop is carried out on real process groups."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import fx

from zc.comm import wire
from zc.comm.groups import group_of
from zc.errors import CommunicationError, ExecutionError
from zc.program.collectives import C10D, COLLECTIVES
from zc.program.printer import print_node


def bind_collective(node: fx.Node) -> Callable[..., wire.Pending]:
    """A function that starts the collective of ``node`` on its group and returns it pending.

    Raises:
        ExecutionError: for a collective that this executor cannot carry out.
    """
    spec = COLLECTIVES[node.target]
    axis = str(node.args[spec.axis_arg])
    start = _STARTERS.get(node.target)
    if start is None:
        raise ExecutionError(f"no way to carry out {print_node(node)}")
    where = print_node(node)

    def launch(tensor: torch.Tensor, *args: Any) -> wire.Pending:
        try:
            return start(tensor, group_of(axis), *args)
        except RuntimeError as error:
            raise CommunicationError(_failure(where, error)) from error

    return launch


def bind_wait(node: fx.Node) -> Callable[[wire.Pending], torch.Tensor]:
    """A function that waits for the collective that ``node`` waits for."""
    where = print_node(node)

    def wait(pending: wire.Pending) -> torch.Tensor:
        try:
            return pending.wait()
        except (RuntimeError, dist.DistBackendError) as error:
            raise CommunicationError(_failure(where, error)) from error

    return wait


def _failure(where: str, error: BaseException) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return (
        f"collective failed in {where}: {reason}; another rank has stopped, hangs or runs a "
        f"different program: look at its output first"
    )


def _gather(tensor: torch.Tensor, group: dist.ProcessGroup, *_: Any) -> wire.Pending:
    return wire.all_gather(tensor, group)


def _scatter(tensor: torch.Tensor, group: dist.ProcessGroup, op: str, *_: Any) -> wire.Pending:
    return wire.reduce_scatter(tensor, group, op)


def _reduce(tensor: torch.Tensor, group: dist.ProcessGroup, op: str, *_: Any) -> wire.Pending:
    return wire.all_reduce(tensor, group, op)


_STARTERS: dict[Any, Callable[..., wire.Pending]] = {
    C10D.all_gather_into_tensor.default: _gather,
    C10D.reduce_scatter_tensor.default: _scatter,
    C10D.all_reduce.default: _reduce,
}
