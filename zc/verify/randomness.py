"""Randomness is explicit: no op of a program reads a hidden generator."""

from zc.program.lines import Reading
from zc.program.program import Program
from zc.verify.diagnostic import refusal


def check(program: Program, reading: Reading) -> None:
    """Refuse an op that draws from a generator: computed again, it would draw something else.

    Raises:
        VerifyError: naming the op.
    """
    for lines in reading.values():
        for node, line in lines.items():
            if line.draws:
                raise refusal(
                    program,
                    node,
                    f"%{node.name} draws random numbers from a hidden generator",
                    "use the zc random ops, which take a seed and an offset",
                )
