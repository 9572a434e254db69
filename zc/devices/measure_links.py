"""Measures what lies behind a device: the memory of its host, a file, and how much memory there is.

One rank measures; the others are idle.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from zc.devices.stopwatch import Stopwatch

SIZES = (64 << 10, 1 << 20, 16 << 20)
_CGROUP = Path("/sys/fs/cgroup/memory.max")
Figures = dict[str, float]


def measure_links(watch: Stopwatch, folder: Path | None = None) -> Figures:
    """Seconds of ``host <bytes>`` and ``file <bytes>``, the mean of both directions.

    Args:
        watch: how to take times.
        folder: where files would lie; by default that of temporary files.
    """
    return dict(_host(watch)) | dict(_file(watch, folder))


def memory_bytes(device: torch.device, ranks: int) -> int:
    """Bytes that one rank can use: of its GPU, or its share of this machine's memory."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _CGROUP.read_text().strip() if _CGROUP.exists() else "max"
    return min(whole, int(limit) if limit.isdigit() else whole) // ranks


def _host(watch: Stopwatch) -> Iterator[tuple[str, float]]:
    pinned = watch.device.type == "cuda"
    for size in SIZES:
        there = torch.ones(size // 4, pin_memory=pinned)
        here = torch.ones(size // 4, device=watch.device)
        yield f"host {size}", watch.seconds(_both_ways(here, there)) / 2


def _both_ways(here: torch.Tensor, there: torch.Tensor) -> Callable[[], None]:
    def copy() -> None:
        there.copy_(here, non_blocking=True)
        here.copy_(there, non_blocking=True)

    return copy


def _file(watch: Stopwatch, folder: Path | None) -> Iterator[tuple[str, float]]:
    with tempfile.TemporaryDirectory(dir=folder) as parent:
        for size in SIZES:
            path, data = Path(parent, "data"), bytes(size)
            yield f"file {size}", watch.seconds(lambda p=path, d=data: _write_and_read(p, d)) / 2


def _write_and_read(path: Path, data: bytes) -> None:
    """All the way to the medium and back, past the cache of the system where it allows that."""
    with open(path, "wb", buffering=0) as file:
        file.write(data)
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with open(path, "rb", buffering=0) as file:
        file.read(len(data))
