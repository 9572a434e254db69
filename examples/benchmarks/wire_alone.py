"""What the collectives of a step cost by themselves: recorded in one step, then carried out alone.

    loss, alone = record(lambda: system.step(*batch))
    alone.replay()         # the same collectives, one after the other, and nothing else

Only zc's collectives can be recorded. Operands of a replay have the shapes and dtypes of those of
the step; what is in them does not matter.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar
from unittest.mock import patch

import torch
import torch.distributed as dist

from zc.comm import wire

Result = TypeVar("Result")
_CARRIED_OUT_BY = ("_gather", "_reduce_scatter", "_all_reduce")  # each: tensors, group, op


@dataclass(frozen=True)
class Recorded:
    """One collective of a step."""

    function: Callable[..., Any]
    tensors: list[torch.Tensor]
    group: dist.ProcessGroup
    how: tuple[Any, ...]  # the kind of reduction

    def carry_out(self) -> None:
        """Start it and wait for it; the result is let go."""
        work, finish = self.function(list(self.tensors), self.group, *self.how)
        if work is not None:
            work.wait()
        finish()


@dataclass
class WireAlone:
    """The collectives of one step, in order."""

    collectives: list[Recorded] = field(default_factory=list)

    def replay(self) -> None:
        """Carry them all out."""
        for collective in self.collectives:
            collective.carry_out()


def record(step: Callable[[], Result]) -> tuple[Result, WireAlone]:
    """Take ``step``; return its result, and what zc's collectives in it were."""
    found = WireAlone()
    with ExitStack() as stack:
        for name in _CARRIED_OUT_BY:
            function = getattr(wire, name)
            stack.enter_context(patch.object(wire, name, _recording(function, found)))
        return step(), found


def _recording(function: Callable[..., Any], into: WireAlone) -> Callable[..., Any]:
    def recorded(tensors: list[torch.Tensor], group: dist.ProcessGroup, *how: Any) -> Any:
        same = [torch.ones(t.shape, dtype=t.dtype, device=t.device) for t in tensors]
        into.collectives.append(Recorded(function, same, group, how))
        return function(tensors, group, *how)

    return recorded
