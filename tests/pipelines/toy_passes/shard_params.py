"""Markers become gathers and reductions."""

from dataclasses import dataclass

from zc.errors import PipelineError
from zc.program.pass_base import Pass
from zc.program.program import Program
from zc.program.units import Bytes


@dataclass(frozen=True)
class ShardParams(Pass):
    kind = "required"
    provides = frozenset({"sharded_params"})

    zero_stage: int = 3  # 0 to 3
    persist_below: Bytes = Bytes(0)  # bytes of a full parameter

    def __post_init__(self) -> None:
        if not 0 <= self.zero_stage <= 3:
            raise PipelineError(f"zero_stage must be 0, 1, 2 or 3; got {self.zero_stage}")

    def run(self, program: Program) -> None:
        program.name += f" sharded {self.zero_stage}"
