"""Optimizers are inlined."""

from dataclasses import dataclass
from typing import ClassVar

from zc.program.pass_base import Kind, Pass
from zc.program.program import Program


@dataclass(frozen=True)
class ShardUpdate(Pass):
    kind: ClassVar[Kind] = "required"
    requires: ClassVar[frozenset[str]] = frozenset({"sharded_params"})

    def run(self, program: Program) -> None:
        program.name += " updated"
