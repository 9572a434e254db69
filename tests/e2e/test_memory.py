"""The memory that the verifier predicts is the memory that a step takes."""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from e2e.equality import Config, compiled_step
from e2e.models import gpt_loss, hugging_face, hugging_face_loss
from memory_tracker import MemoryTracker
from multiprocess import run_ranks
from torch import nn

import zc
from zc.capture.session import Session
from zc.comm.wire import Pending
from zc.program.liveness import peak_bytes
from zc.program.program import Program
from zc.run.executor import build_loop

TOLERANCE = 0.10
REPEATS = 3  # the least counts
SECONDS_TO_LET_GO = 0.005  # a gloo thread holds what it has sent a moment longer than the wait
FEW, MANY = (1, 16), (8, 64)  # batch and length: parameters or activations weigh more


def small_gpt() -> nn.Module:
    from gpt import GPT  # type: ignore[import-not-found]
    from gpt import Config as Sizes

    return GPT(Sizes(layers=3, heads=4, width=96, context=64))


def small_llama() -> nn.Module:
    return hugging_face(
        "LlamaForCausalLM",
        hidden_size=96,
        intermediate_size=200,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )()


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[..., torch.Tensor]]] = {
    "gpt": (small_gpt, gpt_loss),
    "llama": (small_llama, hugging_face_loss),
}


class Settled(Pending):
    """A collective that nothing holds any more when its result is there."""

    def __init__(self, work: Any, finish: Callable[[], torch.Tensor]) -> None:
        def finish_later() -> torch.Tensor:
            time.sleep(SECONDS_TO_LET_GO)
            return finish()

        super().__init__(work, finish_later)


class Watch:
    """Runs the loops of compiled functions under a tracker, once there is one.

    A dispatch mode around the call itself would make Dynamo leave the function uncompiled.
    """

    def __init__(self) -> None:
        self.tracker: MemoryTracker | None = None
        self.programs: list[Program] = []

    @contextmanager
    def installed(self) -> Iterator[None]:
        def finished(_: Session, program: Program) -> None:
            self.programs.append(program)

        with (
            patch("zc.transform.build_loop", self._build),
            patch.object(Session, "finished", finished),
            patch("zc.comm.wire.Pending", Settled),
        ):
            yield

    def _build(self, *args: Any, **kwargs: Any) -> Callable[[list[Any]], list[Any]]:
        loop = build_loop(*args, **kwargs)

        def run(values: list[Any]) -> list[Any]:
            if self.tracker is None:
                return loop(values)
            with self.tracker:
                return loop(values)

        return run


def measure(name: str, level: int, size: tuple[int, int], world: int) -> tuple[int, int]:
    """Peak live bytes of one step under stage 3: measured and predicted."""
    build, loss = MODELS[name]
    torch._dynamo.reset()
    watch = Watch()
    with watch.installed():
        model = zc.shard(build())
        case: Any = type("Case", (), {"loss": staticmethod(loss)})
        step = compiled_step(case, model, Config(name, world, 3, level, "interpret", False))
        tokens = torch.randint(1, 60, size)
        step(tokens)
        peaks = []
        for _ in range(REPEATS):
            model.zero_grad()
            shards = [getattr(p, "_local_tensor", p) for p in model.parameters()]
            watch.tracker = MemoryTracker([*shards, *model.buffers(), tokens])
            step(tokens)
            peaks.append(watch.tracker.peak_bytes)
    (program,) = watch.programs
    return min(peaks), peak_bytes(program.graph)


def measure_all(rank: int, world: int) -> dict[tuple[str, int, tuple[int, int]], tuple[int, int]]:
    warnings.simplefilter("ignore")
    return {
        (name, level, size): measure(name, level, size, world)
        for name, level in (("gpt", 1), ("gpt", 2), ("llama", 2))
        for size in (FEW, MANY)
    }


@pytest.mark.timeout(1000)
def test_the_measured_peak_of_a_step_is_the_predicted_one() -> None:
    for found in run_ranks(measure_all, 2, timeout=900):
        for case, (measured, predicted) in found.items():
            assert abs(measured - predicted) <= TOLERANCE * predicted, (case, measured, predicted)
