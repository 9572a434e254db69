"""Live tensor bytes: the storages that are really there, whoever allocated them.

install()                                   # before anything is compiled
with LiveBytes(model.parameters()) as live:
    step(x)
live.peak, live.update_peak
"""

import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zc.run import kernels

_TORCH_C: Any = torch._C
_GUARDS = _TORCH_C._dynamo.guards
_trackers: list["LiveBytes"] = []
_SECONDS_TO_LET_GO = 0.005  # a gloo thread holds what it has sent a moment longer than the wait


class LiveBytes(TorchDispatchMode):
    """Bytes of every storage that an op has read or returned, or compiled code allocated.

    A storage is counted once, however many tensors view it, from when it is first seen until it is
    freed or resized to nothing (as FSDP2 does). Before a peak is believed, threads of process
    groups get a moment to let go of operands that the step has freed. Not seen: what one op or gloo
    allocates and frees within a call.

    Args:
        held: tensors that live already, counted from the beginning.

    Attributes:
        peak: the most bytes there were right after an op, up to the first generated kernel.
        update_peak: the most from there on; 0 where no generated kernel ran.
    """

    def __init__(self, held: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self._storages: dict[int, Any] = {}
        self.start()
        self.count(held)

    def start(self) -> None:
        """Forget the peaks; what is alive stays known."""
        self.peak = self.update_peak = 0
        self._updates = False

    def launch(self, operands: Any) -> None:
        """A generated kernel runs on ``operands``: the update of a compiled step has begun."""
        self._updates = True
        self.count(operands)

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Functions stay compiled under this mode."""
        return True

    def count(self, values: Any) -> None:
        """See the tensors among ``values``, and take note of how much is alive."""
        for value in tree_leaves(list(values)):
            if isinstance(value, torch.Tensor):
                storage = getattr(value, "_local_tensor", value).untyped_storage()
                self._storages[storage._cdata] = weakref.ref(storage)
        if self._alive() <= (self.update_peak if self._updates else self.peak):
            return
        if dist.is_initialized():
            time.sleep(_SECONDS_TO_LET_GO)
        if self._updates:
            self.update_peak = max(self.update_peak, self._alive())
        else:
            self.peak = max(self.peak, self._alive())

    def _alive(self) -> int:
        found = {key: ref() for key, ref in self._storages.items()}
        for key in [key for key, storage in found.items() if storage is None]:
            del self._storages[key]
        return sum(storage.nbytes() for storage in found.values() if storage is not None)

    def __enter__(self) -> "LiveBytes":
        _trackers.append(self)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        _trackers.remove(self)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented  # its local ops come by next
        result = func(*args, **(kwargs or {}))
        self.count((args, kwargs, result))
        return result


def install() -> None:
    """Let trackers see what does not go through the dispatcher.

    That is what Inductor's code allocates: generated modules take the allocator from
    ``torch._C._dynamo.guards`` when they are loaded. And it is zc's generated kernels.
    """
    original = _GUARDS._empty_strided_cpu
    if not hasattr(original, "counts"):
        _GUARDS._empty_strided_cpu = _counting(original)
        kernels.load = _announcing(kernels.load)  # type: ignore[assignment]


def _counting(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def empty_strided(*args: Any) -> torch.Tensor:
        tensor = allocate(*args)
        for tracker in _trackers:
            tracker.count([tensor])
        return tensor

    empty_strided.counts = True  # type: ignore[attr-defined]
    return empty_strided


def _announcing(load: Callable[..., Any]) -> Callable[..., Any]:
    def load_kernel(*args: Any) -> Callable[..., None]:
        run = load(*args)

        def run_kernel(operands: Any, *others: Any) -> None:
            for tracker in _trackers:
                tracker.launch(operands)
            run(operands, *others)

        return run_kernel

    return load_kernel
