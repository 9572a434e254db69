"""Which way of carrying out a collective was the fastest, as a device file says it.

    ways: {gloo: {all_gather: {0B: native, 1MB: pairwise}, reduce_scatter: {0B: all_to_all}}}

By backend, op, and from so many bytes of the full tensors on. They were measured on
``measured_ranks`` ranks, and hold for groups of as many and more; ``zc.comm.choice`` picks by them.
"""

from collections.abc import Mapping
from typing import Any

from zc.comm.choice import Table
from zc.comm.ways import WAYS
from zc.cost.device import Device
from zc.pipelines.located import Located, nearest
from zc.program.units import Bytes

CLEARLY = 0.9  # of the time of the way that smaller sizes take: noise does not make a new row
Ways = Mapping[str, Mapping[str, Mapping[int, str]]]


def read_ways(place: Located | None) -> Ways:
    """The entry ``ways`` of a device file.

    Raises:
        PipelineError: for a wrong type, an op, a way or a size that there is not, by line.
    """
    backends = {} if place is None else _entries(place)
    return {
        backend: {op: _by_bytes(op, sizes) for op, sizes in _entries(ops).items()}
        for backend, ops in backends.items()
    }


def _by_bytes(op: str, place: Located) -> dict[int, str]:
    if op not in WAYS:
        raise place.fail(f"no op '{op}'{nearest(op, WAYS) or _listed(WAYS)}")
    found = {}
    for size, name in _entries(place).items():
        if name.value not in WAYS[op]:
            raise name.fail(f"no way '{name.value}' of {op}; the ways are {', '.join(WAYS[op])}")
        found[int(Bytes(size))] = str(name.value)
    return found


def _entries(place: Located) -> dict[str, Located]:
    if not isinstance(place.value, dict):
        raise place.fail("'ways' is a mapping of backend, op and bytes to the name of a way")
    return place.value


def _listed(names: Mapping[str, Any]) -> str:
    return f"; there are {', '.join(names)}"


def ways_text(ways: Ways) -> str:
    """``ways`` as ``read_ways`` reads them."""
    return _mapping(
        {
            backend: _mapping(
                {op: _mapping({_size(n): name for n, name in by_bytes.items()})
                 for op, by_bytes in ops.items()}
            )
            for backend, ops in ways.items()
        }
    )  # fmt: skip


def _size(nbytes: int) -> str:
    return str(Bytes(nbytes)) if nbytes else "0B"  # a key of YAML that is text


def _mapping(items: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in items.items()) + "}"


def table_of(device: Device) -> Table:
    """What ``zc.comm.choice.use_measured`` takes."""
    return {
        backend: {op: {device.measured_ranks: by_bytes} for op, by_bytes in ops.items()}
        for backend, ops in device.ways.items()
    }


def fastest(times: Mapping[str, Mapping[int, float]]) -> dict[int, str]:
    """The fastest way from each size on, of ``times`` in seconds by way and bytes.

    A way takes the place of the one for smaller sizes where it is clearly faster.
    """
    found: dict[int, str] = {}
    current = ""
    for size in sorted(next(iter(times.values()))):
        best = min(times, key=lambda name: times[name][size])
        if not current or times[best][size] < CLEARLY * times[current][size]:
            current = best
            found[size if found else 0] = best
    return found
