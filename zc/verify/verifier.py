"""The verifier: every rule of DESIGN section 4; later rules rely on earlier ones."""

from zc.program.lines import Reading, read
from zc.program.program import Program
from zc.verify import (
    collectives,
    gathers,
    loops,
    memory,
    phases,
    randomness,
    ranks,
    residency,
    structure,
    types,
    writes,
)


def verify(
    program: Program, *, full: bool = True, capped: bool = True, reading: Reading | None = None
) -> None:
    """Refuse ``program`` unless it keeps all rules.

    Args:
        program: logical or physical, of any level.
        full: check the type of every node; otherwise of those only that changed, or whose operands
            did, since a verification last found them right.
        capped: whether the peak must be within the program's cap already.
        reading: the lines of the program, from whoever has just read it.

    Raises:
        VerifyError: for the first broken rule: what, where, and what to do.
    """
    reading = read(program) if reading is None else reading
    structure.check(program, reading)
    loops.check(program, reading)
    phases.check(program, reading)
    randomness.check(program, reading)
    collectives.check(program, reading)
    types.check(program, reading, full=full)
    gathers.check(program, reading)
    ranks.check(program, reading)
    writes.check(program, reading)
    residency.check(program, reading)
    if capped:
        memory.check(program)
