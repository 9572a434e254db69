"""How one effect of the loop is carried out on real process groups."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import fx

from zc.comm import wire
from zc.comm.groups import group_of, rank_on
from zc.errors import CommunicationError, ExecutionError
from zc.program.collectives import C10D, COLLECTIVES, is_coalesced
from zc.program.printer import print_node
from zc.program.rounding import round_on
from zc.run.deferred import Deferred, gather_bucket, reduce_bucket


def bind_collective(node: fx.Node, deferred: Sequence[Deferred] = ()) -> Callable[..., Any]:
    """A function that starts the collective of ``node`` on its group and returns it pending.

    That of a bucket returns what has an item for each of its operands. With ``deferred``, those of
    the parameters that ``node`` gathers or reduces, they may wait.

    Raises:
        ExecutionError: for a collective that this executor cannot carry out.
    """
    spec = COLLECTIVES[node.target]
    axis = str(node.args[spec.axis_arg])
    start = _STARTERS.get(node.target)
    if start is None:
        raise ExecutionError(f"no way to carry out {print_node(node)}")
    where = print_node(node)

    def launch(operands: Any, *args: Any) -> Any:
        try:
            return start(operands, group_of(axis), *args)
        except (RuntimeError, CommunicationError) as error:
            raise CommunicationError(_failure(where, error)) from error

    return _deferring(node, launch, deferred) if deferred else launch


def _deferring(
    node: fx.Node, launch: Callable[..., Any], deferred: Sequence[Deferred]
) -> Callable[..., Any]:
    spec = COLLECTIVES[node.target]
    whose = deferred if is_coalesced(node) else deferred[0]
    if spec.op == "all_gather":
        gather = gather_bucket if is_coalesced(node) else Deferred.gather
        return functools.partial(gather, whose, launch)
    world: Any = node.args[2] if spec.op == "reduce_scatter" else 1
    reduce = reduce_bucket if is_coalesced(node) else Deferred.reduce
    return functools.partial(reduce, whose, launch, world=world)


def bind_wait(node: fx.Node) -> Callable[[wire.Pending], torch.Tensor]:
    """A function that waits for the collective that ``node`` waits for."""
    where = print_node(node)

    def wait(pending: wire.Pending) -> torch.Tensor:
        try:
            return pending.wait()
        except (RuntimeError, dist.DistBackendError, CommunicationError) as error:
            raise CommunicationError(_failure(where, error)) from error

    return wait


def own_block(whole: torch.Tensor, axis: str, world: int) -> torch.Tensor:
    """This rank's block of ``whole`` along dimension 0."""
    return whole.chunk(world)[rank_on(axis)].clone()


def bind_rounding(node: fx.Node) -> Callable[..., torch.Tensor]:
    """A function that rounds this rank's shard stochastically."""
    place, axis = node.args[4:6]
    rank = own_rank(place, str(axis))  # type: ignore[arg-type]

    def round_stochastic(
        value: torch.Tensor, step: float, seed: int, entry: int, place: Sequence[int], _: str
    ) -> torch.Tensor:
        return round_on(rank, value, step, seed, entry, place)

    return round_stochastic


def own_rank(places: Sequence[int], axis: str) -> int:
    """This process's position along ``axis``; of no matter where every rank has all of a value."""
    return rank_on(axis) if any(places[3::4]) else 0


def _failure(where: str, error: BaseException) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return (
        f"collective failed in {where}: {reason}; another rank has stopped, hangs or runs a "
        f"different program: look at its output first"
    )


def _gathering(start: Callable[..., Any]) -> Callable[..., Any]:
    return lambda operands, group, *_: start(operands, group)


def _reducing(start: Callable[..., Any]) -> Callable[..., Any]:
    return lambda operands, group, op, *_: start(operands, group, op)


_STARTERS: dict[Any, Callable[..., Any]] = {
    C10D.all_gather_into_tensor.default: _gathering(wire.all_gather),
    C10D.all_gather_into_tensor_coalesced.default: _gathering(wire.all_gather_bucket),
    C10D.reduce_scatter_tensor.default: _reducing(wire.reduce_scatter),
    C10D.reduce_scatter_tensor_coalesced.default: _reducing(wire.reduce_scatter_bucket),
    C10D.all_reduce.default: _reducing(wire.all_reduce),
    C10D.all_reduce_coalesced.default: _reducing(wire.all_reduce_bucket),
}
