"""Seconds of a function on this machine, the device's queue included."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch


@dataclass(frozen=True)
class Stopwatch:
    """Takes the median of several runs.

    Attributes:
        device: whose queue must be empty before and after.
        repeats: runs that count; one more comes first and does not.
    """

    device: torch.device
    repeats: int = 5

    def seconds(self, function: Callable[[], Any], calls: int = 1) -> float:
        """Median seconds of one call of ``function``, which is called ``calls`` times a run."""
        function()
        return median(self.once(function, calls) for _ in range(self.repeats))

    def once(self, function: Callable[[], Any], calls: int = 1) -> float:
        """Seconds of one call of ``function`` in a single run of ``calls``."""
        self.finish()
        start = time.perf_counter()
        for _ in range(calls):
            function()
        self.finish()
        return (time.perf_counter() - start) / calls

    def finish(self) -> None:
        """Wait until the device has nothing left to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
