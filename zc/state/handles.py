"""Numbers that stand for objects in programs: a handle holds on to nothing."""

import itertools
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

from zc.errors import ShardError

T = TypeVar("T")


class Handles(Generic[T]):
    """Objects by number.

    Args:
        gone: what to say when the object of a handle is no more.
        forget: called with the handle of an object that is no more.
    """

    def __init__(self, gone: str, forget: Callable[[int], object] = lambda _: None) -> None:
        self._gone = gone
        self._forget = forget
        self._numbers = itertools.count()  # never again the number of one that is gone
        self._held: dict[int, weakref.ref[T]] = {}

    def of(self, item: T) -> tuple[int, bool]:
        """The handle of ``item``, the same each time, and whether this is the first time."""
        for handle, reference in self._held.items():
            if reference() is item:
                return handle, False
        handle = next(self._numbers)
        self._held[handle] = weakref.ref(item, lambda _: self._drop(handle))
        return handle, True

    def get(self, handle: int) -> T:
        """What ``handle`` stands for.

        Raises:
            ShardError: when it is gone.
        """
        reference = self._held.get(handle)
        item = reference() if reference is not None else None
        if item is None:
            raise ShardError(self._gone)
        return item

    def _drop(self, handle: int) -> None:
        del self._held[handle]
        self._forget(handle)
