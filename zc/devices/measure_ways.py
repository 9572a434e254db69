"""Measures the ways of carrying out a collective on gloo; other backends have their own alone.

All ranks call these functions together, with equal arguments.
"""

from collections.abc import Mapping
from statistics import median

import torch.distributed as dist

from zc.comm.choice import offered, use_measured
from zc.comm.ways import WAYS
from zc.devices.measure_wire import starter
from zc.devices.stopwatch import Stopwatch

SIZES = tuple(65536 << shift for shift in range(0, 9, 2))  # bytes of the full tensor, to 16 MB
_QUICK = SIZES[:2]


def measure_ways(
    watch: Stopwatch, group: dist.ProcessGroup, *, quick: bool = False
) -> dict[str, float]:
    """Median seconds of each way by op and bytes, ways in turn; nothing on other backends."""
    found: dict[str, list[float]] = {}
    if dist.get_backend(group) != "gloo":
        return {}
    for op in WAYS:
        names = offered(op, group)
        for size in _QUICK if quick else SIZES:
            start = starter(op, size, watch.device, group)
            for _ in range(watch.repeats + 1):
                for name in names:
                    use_measured({"gloo": {op: {0: {0: name}}}})
                    dist.barrier(group)
                    seconds = watch.once(lambda run=start: run().wait())
                    found.setdefault(f"way {op} {size} {name}", []).append(seconds)
    use_measured({})
    return {name: median(seconds) for name, seconds in found.items()}


def way_times(figures: Mapping[str, float]) -> dict[str, dict[str, dict[int, float]]]:
    """What ``measure_ways`` found: seconds by op, way and bytes."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for label, seconds in figures.items():
        if label.startswith("way "):
            _, op, size, name = label.split(" ")
            found.setdefault(op, {}).setdefault(name, {})[int(size)] = seconds
    return found
