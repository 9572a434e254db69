"""What ``memory.py``, ``predict.py`` and ``caps.py`` share: settings, a step, its peak, a table."""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from live_bytes import LiveBytes
from ranks import run_ranks
from systems import GPT, SEED, Config

import zc
from zc.cost.simulate import simulate
from zc.pipelines.pipeline import PassPipeline

RATE = 3e-4
Figures = dict[str, Any]


def parser_of(description: str, layers: int, width: int) -> argparse.ArgumentParser:
    """The options that all of them have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--layers", type=int, default=layers)
    parser.add_argument("--width", type=int, default=width)
    parser.add_argument("--rows", type=int, default=2, help="passages in a batch, per rank")
    parser.add_argument("--length", type=int, default=128, help="bytes in a passage")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    parser.add_argument("--save", type=Path, help="also write the table into this file")
    parser.set_defaults(link=None)
    return parser


class Subject:
    """One pass pipeline: what is predicted of a whole step, update included, and the step itself.

    The model is the same for all, and one that no measurement of the device has seen.
    """

    def __init__(self, args: argparse.Namespace, pipeline: PassPipeline) -> None:
        pipeline = replace(pipeline, executor=args.executor)
        torch.manual_seed(SEED)
        self.model: Any = GPT(Config(args.layers, args.width // 64, args.width, args.length))
        if all(getattr(item, "zero_stage", 3) for item in pipeline.passes):
            zc.shard(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE)
        self.tokens = torch.randint(256, (args.rows, args.length))
        self.figures: Figures = {"pipeline": pipeline.name, "seconds": []}
        self.figures |= predict(self._step, self.tokens, pipeline)
        self.step = torch.compile(self._step, backend="zero", options={"passes": pipeline})

    def _step(self, tokens: torch.Tensor) -> torch.Tensor:
        loss = self.model(tokens, tokens)
        loss.backward()
        zc.step(self.optimizer)
        return loss.detach()

    def run(self, *, timed: bool) -> None:
        """One step, from a barrier on."""
        dist.barrier()
        start = time.perf_counter()
        self.step(self.tokens)
        if timed:
            self.figures["seconds"].append(time.perf_counter() - start)

    def peak(self) -> int:
        """Live bytes at most in one more step; what lives between steps is counted throughout."""
        entries = [v for state in self.optimizer.state.values() for v in state.values()]
        held = [*self.model.parameters(), *self.model.buffers(), self.tokens, *entries]
        live = LiveBytes([value for value in held if isinstance(value, torch.Tensor)])
        dist.barrier()
        with live:
            self.step(self.tokens)
        return max(live.peak, live.update_peak)


def predict(step: Any, tokens: torch.Tensor, pipeline: PassPipeline) -> Figures:
    """Time and peak of the program, which is captured and not run."""
    program = zc.capture(step, tokens, passes=pipeline)
    assert program.device is not None
    found = simulate(program, program.device, fused=program.fused)
    return {
        "predicted_seconds": found.seconds,
        "exposed_seconds": found.exposed_seconds,
        "predicted_peak": found.peak_bytes,
    }


def rows_of(
    measure: Callable[..., Figures],
    combine: Callable[[tuple[Figures, ...]], Figures],
    args: argparse.Namespace,
) -> list[Figures]:
    """Of each of the ``rows`` that ``measure(rank, args)`` returns, what ``combine`` makes of it.

    ``combine`` gets one row from all ranks, in their order.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = run_ranks(measure, args, folder=Path(folder, "ranks"))
    return [combine(ranks) for ranks in zip(*(f["rows"] for f in found), strict=True)]


def publish(name: str, title: str, text: str, rows: list[Figures], args: Any) -> None:
    """Print ``text`` and the settings, and write them and the figures where ``args`` say."""
    text = f"{text}\n\n{_settings(args)}"
    print(text)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{name}.json").write_text(json.dumps(rows, indent=2) + "\n")
    if args.save:
        args.save.write_text(f"# {title}\n\n{text}\n")


def _settings(args: argparse.Namespace) -> str:
    """What figures depend on."""
    keys = ("layers", "width", "rows", "length", "ranks", "executor", "starts", "runs")
    asked = {key: vars(args)[key] for key in keys if key in args}
    known = {"torch": torch.__version__, "cores": os.cpu_count(), **asked}
    return ", ".join(f"{key} {value}" for key, value in known.items())


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, numbers to the right of the first column."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def megabytes(count: int | None, digits: int = 2) -> str:
    """Bytes as MB; a dash for what was not counted."""
    return "-" if count is None else f"{count / 1e6:,.{digits}f}"
