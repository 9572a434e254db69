"""What one rank does: build the systems, take their first steps, then rounds of steps of all.

Nothing here is derived from a prediction; ``train_step.py`` says what each figure means.
"""

import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from live_bytes import LiveBytes, install
from sockets import bytes_sent
from systems import System, backend, build

from zc.comm.wire import METER
from zc.run import compile as regions

WARM_UP_ROUNDS = 2  # DDP arranges its buckets anew after its first step
LIVE_BYTES_STEPS = 2  # what lives between steps is known after the first; the second counts
Figures = dict[str, dict[str, Any]]


@dataclass
class Measured:
    """One rank's figures of one system: of each timed step, and of its memory."""

    first_step: float = 0.0
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    metered: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak_backward: int = 0
    peak_update: int = 0


def run_rounds(rank: int, args: Any, caches: Path, rounds: int, memory: bool) -> Figures:
    """The figures of every system on this rank.

    Args:
        rank: of this process.
        args: the settings of ``train_step.py``.
        caches: where each system has a folder for Inductor's cache.
        rounds: timed steps of each system; warm-up steps come on top.
        memory: whether to take further steps, in which live bytes are tracked.
    """
    warnings.simplefilter("ignore")
    torch.compiler.config.recompile_limit = 64  # many systems compile the same code
    if memory:
        install()
    measured = {name: Measured() for name in args.systems}
    batches = [_batch(args, rank, i) for i in range(1 + WARM_UP_ROUNDS + rounds)]
    _start_compiler(args.executor, caches)
    systems = []
    for name in args.systems:
        system = build(name, args.config, args.executor)
        systems.append(system)
        _first_step(system, measured[name], caches, batches[0])
        _say(rank, f"{name}: first step after {measured[name].first_step:.1f} s")
    for i, batch in enumerate(batches[1:]):
        turn = i % len(systems)
        for system in systems[turn:] + systems[:turn]:
            _step(system, measured[system.name], batch, timed=i >= WARM_UP_ROUNDS)
        _say(rank, f"round {i + 1} of {len(batches) - 1}")
    if memory:
        for system in systems:
            _track(system, measured[system.name], batches[0])
    return {name: vars(figures) for name, figures in measured.items()}


def _say(rank: int, text: str) -> None:
    """Progress, beside the table that goes to standard output."""
    if rank == 0:
        print(text, file=sys.stderr, flush=True)


def _batch(args: Any, rank: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same random bytes for every system; other ones on every rank and in every step."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    tokens = torch.randint(256, (args.rows, args.length + 1), generator=generator)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def _start_compiler(executor: str, caches: Path) -> None:
    """One trivial compilation, so that no system is charged for starting the compiler."""
    with _empty_cache(caches / "start"):
        torch.compile(_double, backend=backend(executor))(torch.ones(8))


def _double(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


def _first_step(
    system: System, figures: Measured, caches: Path, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    with _empty_cache(caches / system.name.replace(" ", "_")):
        dist.barrier()
        started = time.perf_counter()
        loss = system.step(*batch)
        system.update()
        figures.first_step = time.perf_counter() - started
    figures.losses.append(loss.item())


@contextmanager
def _empty_cache(folder: Path) -> Iterator[None]:
    """A folder of its own for Inductor, and nothing that an earlier system has compiled."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=str(folder)),
        patch.dict(regions._compiled, clear=True),  # zc's own, within one process
    ):
        yield


def _step(
    system: System, figures: Measured, batch: tuple[torch.Tensor, torch.Tensor], *, timed: bool
) -> None:
    dist.barrier()
    METER.reset()
    sent = bytes_sent()
    cpu, started = time.process_time(), time.perf_counter()
    loss = system.step(*batch)
    system.update()
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


def _track(system: System, figures: Measured, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    live = LiveBytes([*system.model.parameters(), *system.model.buffers(), *batch])
    for _ in range(LIVE_BYTES_STEPS):
        live.start()
        with live:
            system.step(*batch)
        figures.peak_backward, figures.peak_update = live.peak, live.update_peak
        if system.whole:
            continue
        live.start()
        with live:
            system.update()
        figures.peak_update = live.peak
