"""What one rank does with several systems: first steps, then rounds of steps of all, in turn."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from sockets import bytes_moved
from starting import FIRST_STEPS, Batch, batch, say, start, start_compiler
from systems import Trained
from wire_alone import WireAlone, record

from zc.comm.wire import METER

WARM_UP_ROUNDS = 1


@dataclass
class Measured:
    """One rank's figures of one system, of each timed step; losses are those of all steps.

    ``wire_seconds`` are those of its collectives alone, where they can be repeated.
    """

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    wire_seconds: list[float] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    metered: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


def run_rounds(rank: int, args: Any, names: list[str], caches: Path) -> dict[str, Any]:
    """The figures of the systems ``names`` on this rank, by name.

    Args:
        rank: of this process.
        args: the settings of ``train_step.py``.
        names: the systems, which share this process.
        caches: where each system has a folder for what it compiles.
    """
    measured = {name: Measured() for name in names}
    systems: list[Running] = []
    start_compiler(args.executor, caches)
    for name in names:
        system, _, measured[name].losses = start(name, args, rank, caches)
        systems.append(Running(system, measured[name]))
    for i in range(WARM_UP_ROUNDS + args.rounds):
        turn, batch_ = i % len(systems), batch(args, rank, FIRST_STEPS + i)
        for running in systems[turn:] + systems[:turn]:
            if i < WARM_UP_ROUNDS:
                running.warm_up(batch_)
            else:
                running.measure(batch_)
        say(rank, f"round {i + 1} of {WARM_UP_ROUNDS + args.rounds}")
    return {name: vars(figures) for name, figures in measured.items()}


@dataclass
class Running:
    """A system, its figures, and its collectives as they were in its last step of warming up."""

    system: Trained
    figures: Measured
    wire: WireAlone = field(default_factory=WireAlone)

    def warm_up(self, batch_: Batch) -> None:
        """One step that is not timed."""
        loss, self.wire = record(lambda: self.system.step(*batch_))
        self.figures.losses.append(loss.item())

    def measure(self, batch_: Batch) -> None:
        """Two steps, of which the second is timed, and then its collectives alone, if possible.

        The first one finds memory as another system has left it, which costs page faults that a
        system by itself does not have.
        """
        self.figures.losses.append(self.system.step(*batch_).item())
        dist.barrier()
        METER.reset()
        sent = bytes_moved()
        cpu, started = time.process_time(), time.perf_counter()
        loss = self.system.step(*batch_)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        dist.barrier()  # everything sent has arrived
        now = bytes_moved()
        self.figures.losses.append(loss.item())
        self.figures.seconds.append(seconds)
        self.figures.cpu_seconds.append(cpu)
        self.figures.metered.append(METER.total())
        if now is not None and sent is not None:
            self.figures.sent.append(now - sent)
        if self.wire.collectives:
            started = time.perf_counter()
            self.wire.replay()
            self.figures.wire_seconds.append(time.perf_counter() - started)
