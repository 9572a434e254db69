"""Capture a GPT for many ranks in a process of its own and print what that took, as JSON.

python capture_gpt.py FOLDER WORLD LAYERS WIDTH HEADS CONTEXT
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "examples")]

import torch  # noqa: E402
from gpt import GPT, Config  # type: ignore[import-not-found]  # noqa: E402
from multiprocess import fake_world  # noqa: E402

import zc  # noqa: E402
from zc.cost.work import work_of  # noqa: E402
from zc.pipelines import manager  # noqa: E402
from zc.program.stamps import BACKWARD, FORWARD, stamp_of  # noqa: E402


class Clock:
    """CPU seconds spent in functions, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def around(self, name: str, function: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.process_time() - start
                self.seconds[name] = self.seconds.get(name, 0.0) + spent

        return timed


def capture(folder: Path, config: Config) -> Any:
    with torch.device("meta"):
        model = zc.shard(GPT(config))
    with zc.without_memory():
        zc.materialize(model, "cpu")
        tokens = torch.zeros(2, config.context, dtype=torch.int64)

    def step(tokens: torch.Tensor) -> torch.Tensor:
        loss = model(tokens, tokens)
        loss.backward()
        return loss.detach()

    program = zc.capture(step, tokens, passes="zero3", options={"dump": str(folder)})
    return model, program


def flops(program: Any, phase: str) -> int:
    """Operations of matrix products in ``phase``."""
    works = [work_of(node) for node in program.nodes() if stamp_of(node).phase == phase]
    return sum(work.flops for work in works if work.matrix)


def main() -> None:
    folder, world, layers, width, heads, context = Path(sys.argv[1]), *map(int, sys.argv[2:])
    clock = Clock()
    with (
        fake_world(world),
        patch.object(manager, "_run_one", clock.around("passes", manager._run_one)),
        patch.object(manager, "_verify", clock.around("verify", manager._verify)),
    ):
        config = Config(layers=layers, heads=heads, width=width, context=context)
        model, program = capture(folder, config)
    figures = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "allocated": sum(p.to_local().untyped_storage().data_ptr() for p in model.parameters()),
        "flops": {phase: flops(program, phase) for phase in (FORWARD, BACKWARD)},
        "nodes": len(list(program.nodes())),
        "pass_seconds": clock.seconds["passes"],
        "verify_seconds": clock.seconds["verify"],
        "cpu_seconds": time.process_time(),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
