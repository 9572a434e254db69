"""Optimizer arithmetic becomes
generated kernels.

before: one op at a time
after: one kernel
"""

from dataclasses import dataclass
from typing import Literal

from zc.program.pass_base import Pass
from zc.program.program import Program


@dataclass(frozen=True)
class LowerKernels(Pass):
    kind = "numeric"
    requires = frozenset({"sharded_params", "prefetched"})

    path: str  # folder of the generated source
    target: Literal["auto", "triton", "cpp"] = "auto"
    checked: bool = False

    def run(self, program: Program) -> None:
        raise RuntimeError(f"no kernel for {self.target}")
