"""Live tensor bytes as they really are: storages seen by a dispatch mode, held weakly.

with MemoryTracker(model) as tracker:
    step(x)
tracker.peak_bytes
"""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryTracker(TorchDispatchMode):
    """Counts the bytes of every storage that an op returns or reads, until the storage dies.

    A storage is counted once, however many tensors view it, on whatever device it is.

    Args:
        held: tensors that live already, counted from the beginning.

    Attributes:
        live_bytes: now.
        peak_bytes: the most there were right after an op.
    """

    def __init__(self, held: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self._seen: dict[int, tuple[weakref.finalize, int]] = {}
        for tensor in held:
            self._count(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, result)):
            if isinstance(value, torch.Tensor):
                self._count(value)
        return result

    def _count(self, tensor: torch.Tensor) -> None:
        tensor = getattr(tensor, "_local_tensor", tensor)  # of a DTensor
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes()
        self._seen[key] = (weakref.finalize(storage, self._forget, key), size)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _forget(self, key: int) -> None:
        _, size = self._seen.pop(key)
        self.live_bytes -= size
