"""The verifier: every rule of DESIGN section 4; later rules rely on earlier ones."""

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


def verify(program: Program, *, full: bool = True, capped: bool = True) -> None:
    """Refuse ``program`` unless it keeps all rules.

    Args:
        program: logical or physical, of any level.
        full: check the type of every node; otherwise of those only that changed, or whose operands
            did, since a verification last found them right.
        capped: whether the peak must be within the program's cap already.

    Raises:
        VerifyError: for the first broken rule: what, where, and what to do.
    """
    structure.check(program)
    loops.check(program)
    phases.check(program)
    randomness.check(program)
    collectives.check(program)
    types.check(program, full=full)
    gathers.check(program)
    ranks.check(program)
    writes.check(program)
    residency.check(program)
    if capped:
        memory.check(program)
