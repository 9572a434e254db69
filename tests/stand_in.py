"""A recorder for CPUs in place of CUDA graphs: it replays by calling the function again.

What a recording has by address, or in buffers of its own, is what the function is called with; its
results are written over by the next replay. So an input that is not refilled, a number that is kept
from the recorded call or a result that is not copied shows as a wrong value.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch

from zc.run import cuda_graph
from zc.run.recording import Recording, Run, Tensors


class StandIn:
    """Counts recordings and replays of all its kind."""

    device_type = "cpu"
    backends: tuple[str, ...] = ("gloo", "fake")
    recorded = replayed = 0

    def warm(self, run: Run) -> Tensors:
        return run()

    def record(self, run: Run, generators: Sequence[torch.Generator]) -> Recording:
        StandIn.recorded += 1
        kept: Tensors = []

        def replay() -> Tensors:
            StandIn.replayed += 1
            results = run()
            kept.extend(results[len(kept) :])
            for old, new in zip(kept, results, strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)
            return kept

        return Recording(replay)


@contextmanager
def standing_in(recorder: Callable[[], StandIn] = StandIn) -> Iterator[type[StandIn]]:
    """``cuda_graph: true`` records with a stand-in."""
    StandIn.recorded = StandIn.replayed = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_graph, "RECORDER", recorder)
        yield StandIn
