"""Binding a ``GradScaler`` to programs: they read and write its own scale and count of steps."""

from collections.abc import Callable
from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler

from zc.program.overflow import NUMBERS
from zc.program.updates import Update
from zc.state.scaling import scaler_of, start


class LiveCell:
    """A value that is looked up at each call."""

    def __init__(self, read: Callable[[], Any]) -> None:
        self._read = read

    @property
    def value(self) -> Any:
        """The value now."""
        return self._read()


def scaler_cells(handle: int, update: Update, device: torch.device) -> dict[str, LiveCell]:
    """Where the programs of ``update`` find its scaler's tensors and numbers.

    Args:
        handle: of the scaler.
        update: names the entries.
        device: where a scaler that has not been used yet makes its tensors.
    """

    def started() -> GradScaler:
        scaler = scaler_of(handle)
        start(scaler, device)
        return scaler

    found = {
        update.scaler_name("scale"): LiveCell(lambda: started()._scale),
        update.scaler_name("growth_tracker"): LiveCell(lambda: started()._growth_tracker),
    }
    for key in NUMBERS:

        def read(key: str = key) -> float:
            return getattr(scaler_of(handle), f"get_{key}")()

        found[update.scaler_name(key)] = LiveCell(read)
    return found
