"""Memory that a step frees on CPUs stays with the process, for the next step.

glibc's malloc returns a large block to the system as soon as it is freed, and what is free at the
end of the heap as well (mallopt(3), ``M_MMAP_THRESHOLD`` and ``M_TRIM_THRESHOLD``). A training step
frees all that it has made, and so the next one is given fresh pages, which the kernel clears one by
one: filling a fresh tensor takes several times as long as filling one again. Allocators for GPUs
keep what is freed for this reason, and PyTorch's tuning guide advises such a malloc for CPUs. Live
tensors take no more than before; a process stays as large as it once was.

That holds for the whole process, from the first ``zc.shard`` of a model on CPUs, or else from the
first program that runs there. It is left alone
where somebody has set malloc (``GLIBC_TUNABLES``, ``MALLOC_MMAP_THRESHOLD_`` and the like) or
``ZC_KEEP_FREED=0``, and where malloc is not glibc's.
"""

import ctypes
import os
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as malloc.h numbers them
_NEVER, _LARGEST = -1, (1 << 31) - 1  # bytes; mallopt takes an int
_SET_ELSEWHERE = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_",
                  "MALLOC_MMAP_MAX_")  # fmt: skip


@cache
def keep_freed() -> bool:
    """Keep what is freed from here on, once for a process; whether that could be done."""
    if os.environ.get("ZC_KEEP_FREED") == "0" or _is_set_elsewhere():
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    settings = ((_MMAP_THRESHOLD, _LARGEST), (_TRIM_THRESHOLD, _NEVER))
    return all(library.mallopt(name, value) for name, value in settings)


def _is_set_elsewhere() -> bool:
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return "glibc.malloc." in tunables or any(name in os.environ for name in _SET_ELSEWHERE)
