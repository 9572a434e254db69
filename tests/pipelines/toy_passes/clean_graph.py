"""Nodes that do nothing are removed."""

from dataclasses import dataclass

from zc.program.pass_base import Pass
from zc.program.program import Program


@dataclass(frozen=True)
class CleanGraph(Pass):
    def run(self, program: Program) -> None:
        program.name += " cleaned"
