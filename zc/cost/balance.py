"""Whether a rewrite helps, as predicted, and what is said of it where it does not.

    balance = Balance(program)
    ...                                       # rewrite program
    if not balance.helps():
        ...                                   # give it up, and say so: balance.why_not()
    program.notes.append(f"{name}: {balance.said('3 values are computed again')}")

A rewrite helps when the step gets shorter. One that does not make it shorter helps when it lowers
the peak of live bytes in some phase by a larger share than it lengthens the step, and does not
raise that of the whole step: later passes move this one from phase to phase. Above a memory cap,
whatever lowers it helps. That a byte in a hundred is worth a second in a hundred is a heuristic,
and less than a byte in a thousand is not worth saving. What does neither is given up.

Where a program has no device, nothing can be weighed, and every rewrite stays.
"""

from collections.abc import Callable

from zc.cost.device import Device
from zc.cost.trial import NOISE, step_of, times_note
from zc.program.decisions import decision_key
from zc.program.lines import still
from zc.program.liveness import peaks_of
from zc.program.program import Program
from zc.text import show_bytes

LEFT_BEFORE = "left alone, as decided before"
_NOTICED = 1e-3  # of a peak; predictions are no better
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
            self.peaks = peaks_of(self.program)
            self._seconds = self._seconds_now()

    def helps(self) -> bool:
        """Whether the program as it stands takes less time than before, or else less memory."""
        return not self.why_not()

    def why_not(self) -> str:
        """What is wrong with the program as it stands: nothing, where that helps."""
        if self._seconds is None or self.is_shorter():
            return ""
        peaks = peaks_of(self.program)
        highest, was = _highest(peaks), _highest(self.peaks)
        cap = self.program.cap_bytes
        if cap is not None and was > max(cap, highest):
            return ""
        if highest > was:
            return f"raises the peak of live bytes: {_change(highest, was)}"
        shares = {p: 1 - peaks.get(p, 0) / size for p, size in self.peaks.items() if size}
        phase = max(shares, key=shares.__getitem__, default="")
        if not phase or shares[phase] < _NOTICED:
            return "neither shortens the step nor lowers a peak of live bytes"
        longer = -self.gained() / (self._seconds or 1.0)
        if shares[phase] > longer:
            return ""
        return f"lowers the peak of {phase} by {shares[phase]:.2%}, the step grows by {longer:.2%}"

    def raised(self) -> str:
        """Where more bytes live now than before: nowhere, or what to say of it."""
        after = peaks_of(self.program)
        more = [phase for phase, size in after.items() if size > self.peaks.get(phase, 0)]
        return f"raises the peak of live bytes in {more[0]}" if more else ""

    def said(self, done: str) -> str:
        """What a pass says that did ``done`` and leaves it so."""
        if self._seconds is None:
            return done
        peaks = peaks_of(self.program)
        shares = {p: abs(1 - peaks.get(p, 0) / n) for p, n in self.peaks.items() if n}
        phase = max(shares, key=shares.__getitem__, default="")  # where most has changed
        changed = f", the peak of {phase} {_change(peaks.get(phase, 0), self.peaks[phase])}"
        times = times_note(self._seconds, self._seconds - self.gained())
        return f"{done}; {times}{changed if phase else ''}"

    def is_shorter(self) -> bool:
        """Whether the step takes less time than before."""
        return self._seconds is not None and self.gained() > NOISE * self._seconds

    def gained(self) -> float:
        """Seconds by which the step is shorter than before; 0 without a device."""
        return (self._seconds or 0.0) - (self._seconds_now() or 0.0)

    def seconds_now(self, device: Device) -> float:
        """What the step of the program as it stands takes on ``device``."""
        return step_of(self.program, device).timeline.seconds

    def _seconds_now(self) -> float | None:
        device = self.program.device
        return None if device is None else self.seconds_now(device)


def rewrite_if_it_helps(
    program: Program, name: str, rewrite: Callable[[], str], undo: Callable[[], None], doing: str,
    weigh: Callable[[Program], Balance] = Balance,
) -> None:  # fmt: skip
    """Let pass ``name`` rewrite ``program`` where that helps, on all ranks alike, and note it.

    What has been decided for the same collectives before (``zc.program.decisions``) is done again.

    Args:
        program: to rewrite.
        name: of the pass.
        rewrite: rewrites it; returns what it did, or nothing where there was nothing to do.
        undo: what takes that back.
        doing: what ``rewrite`` does, as the beginning of a sentence.
        weigh: what says whether it helps.
    """
    key = decision_key(program, name)
    decided = program.decisions.get(key)
    if decided == _LEFT:
        program.notes.append(f"{name}: {LEFT_BEFORE}")
        return
    balance = None if decided or program.device is None else weigh(program)
    done = rewrite()
    if not done:
        program.notes.append(f"{name}: left alone: there is nothing to do")
        return
    if balance is None:
        said = f"{done}, as decided before" if decided else done
    elif balance.helps():
        decided, said = _DONE, balance.said(done)
    else:
        decided, said = _LEFT, f"left alone: {doing} {balance.why_not()}"
        undo()
    if decided:
        program.decisions[key] = decided
    program.notes.append(f"{name}: {said}")


def _highest(peaks: dict[str, int]) -> int:
    return max(peaks.values(), default=0)


def _change(now: int, before: int) -> str:
    return f"{show_bytes(now)} in place of {show_bytes(before)}"
