"""Trying a rewrite on paper: what the step costs with it, and the way back.

trial = Trial(program, device)
...                                      # move nodes of program.graph
if not trial.shorter(trial.timeline()):
    trial.undo()
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from torch import fx

from zc.cost.device import Device
from zc.cost.simulate import simulate
from zc.cost.timeline import Timeline
from zc.cost.times import Works, node_seconds, works_of_lines
from zc.errors import PipelineError
from zc.program.effects import effects_in
from zc.program.lines import read
from zc.program.liveness import live_bytes
from zc.program.places import put_back
from zc.program.program import Program
from zc.program.remembered import remembered
from zc.program.units import Bytes
from zc.text import show_bytes

_TRIES = 3
NOISE = 1e-9  # relative; sums of the same seconds in another order differ by less
T = TypeVar("T")


class Step(NamedTuple):
    """What each node of a program takes on a device, in seconds, and the step that they make."""

    seconds: dict[fx.Node, float]
    timeline: Timeline


def step_of(program: Program, device: Device) -> Step:
    """The step of ``program`` on ``device``; worked out once for the same nodes."""

    def find() -> tuple[Device, Step]:
        graph, works = program.graph, works_in(program)
        seconds = node_seconds(graph, program.mesh, device, fused=True, known=works)
        return device, Step(seconds, simulate(program, device, seconds=seconds, memory=False))

    return remembered(program, ("step", id(device)), find)[1]  # held, so that its id is its own


def works_in(program: Program) -> Works:
    """What the nodes of ``program`` do; worked out once for nodes that say the same."""
    (lines,) = read(program).values()
    return works_of_lines(lines, effects_in(program))


class Trial:
    """One program before and after its nodes were moved.

    Attributes:
        before: the step as it was.
        live: live bytes at each of its nodes.
    """

    def __init__(self, program: Program, device: Device) -> None:
        self._program, self._device = program, device
        self._order = list(program.graph.nodes)
        self._costs, self.before = step_of(program, device)
        self.live = live_bytes(program)
        self._peak = max(self.live, default=0)
        self._last = self._order, self._peak

    def timeline(self) -> Timeline:
        """The step as its nodes stand, each of which takes what it took before the rewrite."""
        return simulate(self._program, self._device, seconds=self._costs, memory=False)

    def shorter(self, found: Timeline, than: Timeline | None = None) -> bool:
        """Whether ``found`` takes less time than the step took before, or than another one."""
        return shorter(found, than or self.before)

    def within(self, limit: int, place: Callable[[int], T]) -> T:
        """What ``place(room)`` returns, which moves nodes so that they take ``room`` bytes.

        Where regions are compiled, nodes between two others may keep what these hand over in
        memory, which ``place`` does not see; while live bytes are above ``limit``, it gets as much
        less room.
        """
        room = limit
        for _ in range(_TRIES - 1):
            found = place(room)
            over = self._over(limit)
            if not over:
                return found
            self.undo()
            room -= over
        return place(room)

    def _over(self, limit: int) -> int:
        """Bytes by which nodes as they stand exceed ``limit``, and what they took before."""
        return max(0, self._peak_now() - max(limit, self._peak))

    def _peak_now(self) -> int:
        order = list(self._program.graph.nodes)
        if order != self._last[0]:
            self._last = order, max(live_bytes(self._program), default=0)
        return self._last[1]

    def settle(self, name: str, done: str, doing: str, limit: int) -> None:
        """Keep the rewrite of pass ``name`` if the step is shorter and fits, else undo it; note it.

        ``done`` and ``doing`` say what it did and would have done, ``limit`` is in bytes.
        """
        after = step_of(self._program, self._device).timeline  # other nodes are compiled together
        if self.shorter(after) and not self._over(limit):
            said = done_note(done, limit, self.before, after)
        else:
            self.undo()
            said = idle_note(doing, limit)
        self._program.notes.append(f"{name}: {said}")

    def undo(self) -> None:
        """Give the nodes the order that they had."""
        put_back(self._order)


def shorter(found: Timeline, than: Timeline) -> bool:
    """Whether one step takes less time than another."""
    return found.seconds < than.seconds * (1 - NOISE)


def device_of(program: Program, name: str) -> Device:
    """The device that pass ``name`` reckons with.

    Raises:
        PipelineError: when nobody has said what the program is meant to run on.
    """
    if program.device is None:
        raise PipelineError(
            f"'{name}' weighs costs, and the program has no device; run it in a pass pipeline, "
            f"or set program.device to one of zc.devices.reader.load_device"
        )
    return program.device


def memory_limit(program: Program, peak: int, memory: Bytes | None, default: int) -> int:
    """Live bytes that a pass must not exceed: the cap, ``memory`` above ``peak``, or the smaller.

    Without a cap and without ``memory``, ``default`` bytes above ``peak``.
    """
    cap = program.cap_bytes
    if cap is None:
        return peak + (default if memory is None else int(memory))
    return cap if memory is None else min(cap, peak + int(memory))


def done_note(done: str, limit: int, before: Timeline, after: Timeline) -> str:
    """What a pass that did ``done`` within ``limit`` bytes says of the step."""
    times = times_note(before.seconds, after.seconds)
    return f"{done} within {show_bytes(limit)} of live bytes; {times}"


def idle_note(doing: str, limit: int) -> str:
    """What a pass says that left a program alone, since ``doing`` something does not help."""
    within = f"within {show_bytes(limit)} of live bytes"
    return f"left alone: {doing} {within} does not shorten the step"


def times_note(before: float, after: float) -> str:
    """How long the step takes in seconds, for a note."""
    return f"the step takes {after * 1e3:.3f}ms in place of {before * 1e3:.3f}ms"
