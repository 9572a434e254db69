"""What compiled regions allocate: Inductor's own code for a region, run without its kernels.

The code that Inductor writes allocates, calls what it does not generate, and lets go; C++ kernels
only fill what is allocated already. They are replaced by nothing, so that no C++ is compiled.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from memory_tracker import MemoryTracker
from torch._inductor import config
from torch._inductor.async_compile import AsyncCompile

from zc import torch_private
from zc.program.nodes import value_of
from zc.run.regions import Region, extract

_ALLOCATOR = "_empty_strided_cpu"  # generated modules take it from here when they are loaded


def allocated_bytes(region: Region) -> int:
    """Most bytes that the compiled ``region`` has allocated at a time, its results included."""
    module = extract(region)
    examples = [value_of(node) for node in module.graph.find_nodes(op="placeholder")]
    trackers: list[MemoryTracker] = []
    with _no_kernels(trackers):
        run = torch_private.compile_region(module, examples)
    inputs = [_like(example) for example in examples]
    held = {x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in inputs}
    with MemoryTracker(inputs) as tracker:
        trackers.append(tracker)
        run(list(inputs))
    return tracker.peak_bytes - sum(held.values())


@contextmanager
def _no_kernels(trackers: list[MemoryTracker]) -> Iterator[None]:
    guards: Any = torch._C._dynamo.guards  # type: ignore[attr-defined]
    allocate: Callable[..., torch.Tensor] = getattr(guards, _ALLOCATOR)

    def counted(*args: Any) -> torch.Tensor:
        tensor = allocate(*args)
        for tracker in trackers:
            tracker._count(tensor)
        return tensor

    def no_kernel(*_: Any) -> Callable[..., None]:
        return lambda *_: None

    with (
        patch.object(guards, _ALLOCATOR, counted),
        patch.object(AsyncCompile, "cpp_pybinding", no_kernel),
        config.patch(force_disable_caches=True),
    ):
        yield


def _like(example: torch.Tensor) -> torch.Tensor:
    count = example.untyped_storage().nbytes() // example.element_size()
    memory = torch.zeros(count, dtype=example.dtype)
    return memory.as_strided(example.shape, example.stride(), example.storage_offset())
