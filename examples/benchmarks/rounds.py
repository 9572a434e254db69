"""What one rank does with several systems: first steps, then rounds of steps of all, in turn."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from sockets import bytes_sent
from starting import FIRST_STEPS, Batch, batch, say, start, start_compiler
from systems import Trained

from zc.comm.wire import METER

WARM_UP_ROUNDS = 1


@dataclass
class Measured:
    """One rank's figures of one system, of each timed step; losses are those of all steps."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
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
    systems: list[tuple[Trained, Measured]] = []
    start_compiler(args.executor, caches)
    for name in names:
        system, _, measured[name].losses = start(name, args, rank, caches)
        systems.append((system, measured[name]))
    for i in range(WARM_UP_ROUNDS + args.rounds):
        turn, batch_ = i % len(systems), batch(args, rank, FIRST_STEPS + i)
        for system, figures in systems[turn:] + systems[:turn]:
            _step(system, figures, batch_, timed=i >= WARM_UP_ROUNDS)
        say(rank, f"round {i + 1} of {WARM_UP_ROUNDS + args.rounds}")
    return {name: vars(figures) for name, figures in measured.items()}


def _step(system: Trained, figures: Measured, batch_: Batch, *, timed: bool) -> None:
    dist.barrier()
    METER.reset()
    sent = bytes_sent()
    cpu, started = time.process_time(), time.perf_counter()
    loss = system.step(*batch_)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    dist.barrier()  # everything sent has arrived
    now = bytes_sent()
    figures.losses.append(loss.item())
    if not timed:
        return
    figures.seconds.append(seconds)
    figures.cpu_seconds.append(cpu)
    figures.metered.append(METER.total())
    if now is not None and sent is not None:
        figures.sent.append(now - sent)
