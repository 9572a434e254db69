"""Whether a rewrite helps, as predicted, and what is said of it where it does not.

    balance = Balance(program)
    ...                                       # rewrite program
    if not balance.helps():
        ...                                   # give it up
    program.notes.append(f"{name}: {balance.said('3 values are computed again')}")

A rewrite helps when the step gets shorter. One that does not make it shorter helps when the peak of
live bytes falls in some phase, and that of the whole step does not rise: who lists such a pass
wants the memory, and how many seconds a byte is worth is not ours to say. What does neither is
given up.

Where a program has no device, nothing can be weighed, and every rewrite stays.
"""

from collections.abc import Callable

from zc.cost.timeline import Timeline
from zc.cost.trial import shorter, step_of, times_note
from zc.program.decisions import decision_key
from zc.program.lines import still
from zc.program.liveness import peaks_of
from zc.program.program import Program
from zc.text import show_bytes

_LEFT, _DONE = (0,), (1,)  # decisions


class Balance:
    """The predicted step and the peaks of one program, before and after it is rewritten.

    Attributes:
        program: which may be rewritten meanwhile.
        peaks: live bytes at most in each phase, as they were.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        with still(program):
            self.peaks = peaks_of(program)
            self._step = self._step_now()

    def helps(self) -> bool:
        """Whether the program as it stands takes less memory than before, or else less time."""
        if self._step is None:
            return True
        after = peaks_of(self.program)
        falls = any(after.get(phase, 0) < peak for phase, peak in self.peaks.items())
        return (falls and _highest(after) <= _highest(self.peaks)) or self._is_shorter()

    def raises_a_peak(self) -> bool:
        """Whether more bytes live in some phase now than did before."""
        after = peaks_of(self.program)
        return any(size > self.peaks.get(phase, 0) for phase, size in after.items())

    def said(self, done: str) -> str:
        """What a pass says that did ``done`` and leaves it so."""
        with still(self.program):
            before, after = self._step, self._step_now()
            peaks = [show_bytes(_highest(p)) for p in (peaks_of(self.program), self.peaks)]
        if before is None or after is None:
            return done
        return f"{done}; {times_note(before, after)}, the peak {peaks[0]} in place of {peaks[1]}"

    def _step_now(self) -> Timeline | None:
        device = self.program.device
        return None if device is None else step_of(self.program, device).timeline

    def _is_shorter(self) -> bool:
        after = self._step_now()
        return after is not None and self._step is not None and shorter(after, self._step)


def left_alone(doing: str) -> str:
    """What a pass says that gave up ``doing`` something."""
    return f"left alone: {doing} neither shortens the step nor lowers a peak of live bytes"


def rewrite_if_it_helps(
    program: Program, name: str, rewrite: Callable[[], str], undo: Callable[[], None], idle: str,
    balance: Balance | None = None,
) -> None:  # fmt: skip
    """Let pass ``name`` rewrite ``program`` where that helps, on all ranks alike, and note it.

    What has been decided for the same collectives before (``zc.program.decisions``) is done again.

    Args:
        program: to rewrite.
        name: of the pass.
        rewrite: rewrites it; returns what it did, or nothing where there was nothing to do.
        undo: what takes that back.
        idle: what to say of a program that is left alone, see ``left_alone``.
        balance: what says whether it helps; that of step and peaks unless given.
    """
    key = decision_key(program, name)
    decided = program.decisions.get(key)
    if decided == _LEFT:
        program.notes.append(f"{name}: left alone, as decided before")
        return
    balance = balance or Balance(program)
    done = rewrite()
    if not done:
        program.notes.append(f"{name}: left alone: there is nothing to do")
        return
    if decided == _DONE:
        said = f"{done}, as decided before"
    elif balance.helps():
        decided, said = _DONE, balance.said(done)
    else:
        undo()
        decided, said = _LEFT, idle
    program.decisions[key] = decided
    program.notes.append(f"{name}: {said}")


def _highest(peaks: dict[str, int]) -> int:
    return max(peaks.values(), default=0)
