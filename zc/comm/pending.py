"""Collectives on their way: one, or several as a bucket."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")


class Pending(Generic[T]):
    """A collective on its way; ``wait`` returns its result and may be called once.

    ``work`` has a ``wait`` of its own, or is ``None`` when nothing is under way.
    """

    def __init__(self, work: Any, finish: Callable[[], T]) -> None:
        self._work = work
        self._finish = finish

    def wait(self) -> T:
        """Block (on CUDA: make the current stream wait) until done, and return the result.

        Raises:
            RuntimeError: from the backend, when a peer is gone or the group's timeout has passed.
            CommunicationError: the same of direct transfers.
        """
        if self._work is not None:
            self._work.wait()
            self._work = None  # it holds its operands and results, which _finish lets go
        result = self._finish()
        del self._finish
        return result


class PendingBucket:
    """Collectives on their way as one; its items are waited for one by one, in any order.

    The first wait completes all; an item is kept until it is waited for.
    """

    def __init__(self, together: Pending[list[torch.Tensor]]) -> None:
        self._together = together
        self._results: list[torch.Tensor | None] = []

    def __getitem__(self, index: int) -> Pending[torch.Tensor]:
        return Pending(None, lambda: self._take(index))

    def _take(self, index: int) -> torch.Tensor:
        if not self._results:
            self._results = list(self._together.wait())
        result, self._results[index] = self._results[index], None
        assert result is not None
        return result


@dataclass
class Works:
    """Several works as one."""

    works: list[Any]

    def wait(self) -> None:
        """Wait for each."""
        for work in self.works:
            work.wait()
