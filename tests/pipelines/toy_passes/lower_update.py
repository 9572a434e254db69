"""Updates become kernels."""

from dataclasses import dataclass

from zc.program.pass_base import Pass
from zc.program.program import Program


@dataclass(frozen=True)
class LowerUpdate(Pass):
    kind = "numeric"

    def run(self, program: Program) -> None:
        program.name += " lowered"
