"""What one rank does with one system in a process of its own: start, memory, calls of gloo."""

import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
from live_bytes import LiveBytes, install
from starting import FIRST_STEPS, Batch, batch, start, start_compiler
from systems import Trained
from torch.profiler import ProfilerActivity, profile

from zc.comm.direct import READ

STEADY_STEPS = 2


def run_start(rank: int, args: Any, name: str, caches: Path) -> dict[str, Any]:
    """The seconds of the first steps of the system ``name``."""
    start_compiler(args.executor, caches)
    _, seconds, _ = start(name, args, rank, caches)
    return {"start": seconds}


def run_memory(rank: int, args: Any, name: str, caches: Path) -> dict[str, Any]:
    """As ``run_start``; then the memory and the calls of gloo of a step.

    Resident memory is the most there was in steps after those that compile. Live bytes are tracked
    last, in further steps.
    """
    install()
    start_compiler(args.executor, caches)
    system, seconds, _ = start(name, args, rank, caches)
    batch_ = batch(args, rank, FIRST_STEPS)
    forget_peak()
    for _ in range(STEADY_STEPS):
        system.step(*batch_)
    resident = peak_resident()
    calls = _calls(system, batch_)
    return {
        "start": seconds, "resident": resident, "calls": calls, "peak": _live(system, batch_)
    }  # fmt: skip


def _calls(system: Trained, batch_: Batch) -> int:
    """How often gloo is called in a step: collectives, and messages from rank to rank.

    A direct exchange (``zc.comm.direct``) counts as one call.
    """
    before = READ.exchanges
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        system.step(*batch_)
        dist.barrier()
    return (READ.exchanges - before) + sum(
        event.name.startswith("gloo:") and event.name != "gloo:barrier"
        for event in profiler.events() or ()
    )


def _live(system: Trained, batch_: Batch) -> int:
    live = LiveBytes([*system.model.parameters(), *system.model.buffers(), *batch_])
    for _ in range(STEADY_STEPS):  # what lives between steps is known after the first
        live.start()
        with live:
            system.step(*batch_)
    return max(live.peak, live.update_peak)


def forget_peak() -> None:
    """Let the kernel count this process's peak of resident memory anew, on Linux."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def peak_resident() -> int | None:
    """The most bytes of this process that were in memory since ``forget_peak``, on Linux."""
    if sys.platform != "linux":
        return None
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024  # the line is in kB
    return None
