"""Watching is not passing: what dumps, timing, verification and bisection are made of."""

from zc.program.pass_base import Pass
from zc.program.program import Program


class Instrument:
    """Called by the manager around every pass; override what is of interest."""

    def before_passes(self, program: Program, passes: tuple[Pass, ...]) -> None:
        """Called once, with the program as captured and the passes about to run."""

    def after_pass(self, index: int, applied: Pass, program: Program, seconds: float) -> None:
        """Called after pass number ``index`` (from 1), which took ``seconds``."""

    def after_passes(self, program: Program) -> None:
        """Called once, with the finished program."""

    def after_loop(self) -> None:
        """Called when the program, or a half of it, can run."""
