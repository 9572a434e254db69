"""Measures a process group: its collectives as ``zc.comm.wire`` carries them out, and overlap.

A collective takes longer in a step than by itself. Code and operands are no longer in caches, the
threads that move bytes have to be woken, and a rank waits for those that got there later. So what
counts of a collective is what it adds to compute that waits for it at once: ranks multiply
matrices and communicate in turn, no barrier in between, and do the same products without. It is at
least what the collective takes by itself.

All ranks call these functions together, with equal arguments.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from zc.comm import wire
from zc.devices.fits import Samples, interference, shares_a_lane
from zc.devices.measure_compute import SHAPES, three_products
from zc.devices.stopwatch import Stopwatch

OPS = ("all_gather", "reduce_scatter", "all_reduce")
SIZES = tuple(4096 << shift for shift in range(0, 13, 2))  # bytes of the full tensor, to 16 MB
_QUICK = SIZES[:3]
_LAYER = 2  # of SHAPES: as much compute as lies between two collectives of a layer
_TURNS = 4  # of compute and a collective in one run
Start = Callable[[], wire.Pending]
Figures = dict[str, float]


def measure_wire(watch: Stopwatch, group: dist.ProcessGroup, *, quick: bool = False) -> Figures:
    """Seconds that collectives add to compute, by op and bytes sent, issuing them, and overlap.

    Args:
        watch: how to take times.
        group: of the ranks that measure.
        quick: small sizes only, for tests of the procedure.
    """
    found: Figures = {}
    sizes = _QUICK if quick else SIZES
    rows, inner, columns = SHAPES[watch.device.type][0 if quick else _LAYER]
    compute = three_products(rows, inner, columns, torch.float32, watch.device)
    for op in OPS:
        for size in sizes:
            collective = _both(starter(op, size, watch.device, group))
            seconds = _added(watch, group, compute, collective)
            found[f"{op} {_sent(op, size, group.size())}"] = seconds
    small, large = (starter("all_gather", s, watch.device, group) for s in (sizes[0], sizes[-1]))
    found["issue"] = _issue(watch, group, small)
    found["interference"] = _interference(watch, group, large)
    scatter = starter("reduce_scatter", sizes[-1], watch.device, group)
    found["one_lane"] = float(_in_turn(watch, group, large, scatter))
    return found


def starter(op: str, size: int, device: torch.device, group: dist.ProcessGroup) -> Start:
    """A function that starts ``op`` on a full tensor of about ``size`` bytes."""
    n = group.size()
    block = -(-size // (4 * n))
    full = torch.ones(n * block, device=device)
    if op == "all_gather":
        return lambda: wire.all_gather(full[:block], group)
    start = wire.reduce_scatter if op == "reduce_scatter" else wire.all_reduce
    return lambda: start(full, group)


def link_samples(figures: Figures, op: str) -> Samples:
    """Bytes sent and seconds of ``op``, without what starting it takes of the compute lane."""
    named = [(name.split(" "), seconds) for name, seconds in figures.items()]
    issue = figures["issue"]
    return [(float(p[1]), max(s - issue, s / 10)) for p, s in named if p[0] == op and len(p) == 2]


def _sent(op: str, size: int, ranks: int) -> int:
    block = -(-size // (4 * ranks)) * 4
    return (2 if op == "all_reduce" else 1) * (ranks - 1) * block


def _both(start: Start) -> Callable[[], Any]:
    return lambda: start().wait()


def _added(
    watch: Stopwatch,
    group: dist.ProcessGroup,
    compute: Callable[[], Any],
    collective: Callable[[], Any],
) -> float:
    """Median seconds that ``collective`` adds to ``compute`` before it, or takes by itself if more.

    Runs with it and without it end with a barrier: the slowest rank's compute counts in both.
    """

    def turns(collectives: int) -> None:
        for _ in range(_TURNS):
            compute()
            for _ in range(collectives):
                collective()
        dist.barrier(group)

    alone = _median(watch, group, collective)
    added = []
    for _ in range(watch.repeats + 1):
        without, together = (_together(watch, group, lambda n=n: turns(n)) for n in (0, 1))
        added.append((together - without) / _TURNS)
    return max(median(added), alone)


def _median(watch: Stopwatch, group: dist.ProcessGroup, function: Callable[[], Any]) -> float:
    """Median seconds of ``function``, which all ranks begin together."""
    return median(_together(watch, group, function) for _ in range(watch.repeats + 1))


def _together(watch: Stopwatch, group: dist.ProcessGroup, function: Callable[[], Any]) -> float:
    dist.barrier(group)
    return watch.once(function)


def _issue(watch: Stopwatch, group: dist.ProcessGroup, start: Start) -> float:
    """Median seconds of starting a collective.

    A wait for one that has ended takes no longer. Where the wait moves the bytes itself, as that of
    a direct exchange does, its time is the collective's.
    """
    starts = []
    for _ in range(watch.repeats + 1):
        dist.barrier(group)
        watch.finish()
        began = time.perf_counter()
        pending = start()
        starts.append(time.perf_counter() - began)
        pending.wait()
        watch.finish()
    return median(starts[1:])


def _interference(watch: Stopwatch, group: dist.ProcessGroup, start: Start) -> float:
    """How much of a transfer is not hidden behind matrix products that take longer than it."""
    transfer = _median(watch, group, _both(start))
    side = 1024 if watch.device.type == "cuda" else 256
    a = torch.ones(side, side, device=watch.device)
    once = _median(watch, group, lambda: torch.mm(a, a))
    calls = _agreed(int(1.5 * transfer / once) + 1, watch.device, group)

    def compute() -> None:
        for _ in range(calls):
            torch.mm(a, a)

    def overlapped() -> None:
        pending = start()
        compute()
        pending.wait()

    alone = _median(watch, group, compute)
    return interference(alone, transfer, _median(watch, group, overlapped))


def _agreed(number: int, device: torch.device, group: dist.ProcessGroup) -> int:
    """The largest ``number`` of all ranks."""
    value = torch.tensor([number], device=device)
    dist.all_reduce(value, dist.ReduceOp.MAX, group)
    return int(value.item())


def _in_turn(watch: Stopwatch, group: dist.ProcessGroup, gather: Start, scatter: Start) -> bool:
    def both() -> None:
        first, second = gather(), scatter()
        first.wait()
        second.wait()

    alone = [_median(watch, group, _both(start)) for start in (gather, scatter)]
    return shares_a_lane(alone[0], alone[1], _median(watch, group, both))
