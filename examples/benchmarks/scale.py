"""CPU seconds that each pass takes as a program grows: a GPT of many layers, for many ranks.

    python examples/benchmarks/scale.py                                # 24 and 96 layers
    python examples/benchmarks/scale.py --layers 24 96 384 --world 1024
    python examples/benchmarks/scale.py --pipeline examples/pipelines/zero3_lean.yaml --optimizer

The model is captured without memory for ranks that are not there, and nothing runs. Depth is all
that makes a program long, so width is small. One row for each depth; *capture* is what torch's
tracing and zc's reading of it take together, *first check* the verification of the program as
captured, *checks* all later ones, each where a pass has changed anything, *text* printing the
program as captured and behind each pass, which is how dumps tell what changed. *all* is everything
but capture. With ``--optimizer`` the step ends with an update by AdamW. The last table has what
four times the nodes take, to the power of log 4 over log of how much longer the last program is
than the first: 4 is linear, 16 quadratic.

Seconds are of this process, all threads; another program on the machine hardly adds to them.
"""

import argparse
import gc
import json
import math
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from systems import GPT, Config

import zc
from zc.pipelines.instrument import Instrument
from zc.pipelines.manager import run_passes
from zc.pipelines.pipeline import PassPipeline
from zc.program.pass_base import Pass
from zc.program.printer import print_program
from zc.program.program import Program
from zc.program.standing import Standing
from zc.torch_private import fake_world
from zc.verify import verify

CAPTURE, FIRST, CHECKS, TEXT, ALL = "capture", "first check", "checks", "text", "all"
Row = dict[str, float]


def main() -> None:
    args = parse_arguments()
    warnings.simplefilter("ignore")
    rows = [measure(layers, args) for layers in args.layers]
    text = "\n".join(table(rows))
    print(text)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "scale.json").write_text(json.dumps(rows, indent=2) + "\n")


def parse_arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="time passes over long programs")
    parser.add_argument("--layers", type=int, nargs="+", default=[24, 96])
    parser.add_argument("--pipeline", default="zero3", help="a pass pipeline: a name or a file")
    parser.add_argument("--world", type=int, default=8, help="ranks, none of which is there")
    parser.add_argument("--width", type=int, default=64, help="a multiple of 16")
    parser.add_argument("--length", type=int, default=32, help="bytes in a passage")
    parser.add_argument("--optimizer", action="store_true", help="end the step with AdamW")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    return parser.parse_args(given)


def measure(layers: int, args: argparse.Namespace) -> Row:
    """Seconds by what they were spent on, for one depth."""
    begin = time.process_time()
    with fake_world(args.world):
        program = captured(layers, args)
    capture = time.process_time() - begin
    clock = Clock()
    gc.collect()
    run_passes(program, PassPipeline.resolve(args.pipeline), [clock], verify=False)
    nodes = len(list(program.nodes()))
    return {
        "layers": layers,
        "nodes": clock.nodes,
        "nodes after": nodes,
        CAPTURE: capture,
        **clock.seconds,
        ALL: sum(clock.seconds.values()),
    }


def captured(layers: int, args: argparse.Namespace) -> Program:
    """The logical program of a training step, as rank 0 has it."""
    config = Config(layers=layers, heads=args.width // 16, width=args.width, context=args.length)
    with torch.device("meta"):
        model = zc.shard(GPT(config))
    with zc.without_memory():
        zc.materialize(model, "cpu")
        tokens = torch.zeros(2, args.length, dtype=torch.int64)
    optimizer = torch.optim.AdamW(model.parameters()) if args.optimizer else None

    def step(tokens: torch.Tensor) -> torch.Tensor:
        loss = model(tokens, tokens)
        loss.backward()
        if optimizer is not None:
            zc.step(optimizer)
        return loss.detach()

    return zc.capture(step, tokens)


class Clock(Instrument):
    """What the manager does between passes, and CPU seconds by what they were spent on."""

    def __init__(self) -> None:
        self.seconds: Row = {}
        self.nodes = 0
        self._last = 0
        self._since = 0.0
        self._standing: Standing | None = None

    def before_passes(self, program: Program, passes: tuple[Pass, ...]) -> None:
        """Print and verify the program as captured."""
        self.nodes, self._last = len(list(program.nodes())), len(passes)
        self._since = time.process_time()
        print_program(program)
        self._spent(TEXT)
        verify(program, full=True, capped=False)
        self._standing = Standing(program)
        self._spent(FIRST)

    def after_pass(self, index: int, applied: Pass, program: Program, seconds: float) -> None:
        """Print and verify what the pass left."""
        self._spent(applied.name)
        print_program(program)
        self._spent(TEXT)
        last = index == self._last
        before, self._standing = self._standing, Standing(program)
        if last or self._standing != before:
            verify(program, full=last, capped=last, reading=self._standing.reading)
        self._spent(CHECKS)

    def _spent(self, on: str) -> None:
        now = time.process_time()
        self.seconds[on] = self.seconds.get(on, 0.0) + now - self._since
        self._since = now


def table(rows: Sequence[Row]) -> list[str]:
    """The rows as Markdown, turned: a column for each depth."""
    lines = ["| | " + " | ".join(f"{row['layers']:g} layers" for row in rows) + " | x4 |"]
    lines.append("| --- |" + " ---: |" * (len(rows) + 1))
    for name in rows[-1]:
        if name == "layers":
            continue
        show = "{:,.0f}" if name.startswith("nodes") else "{:.2f}"
        cells = [show.format(row.get(name, 0.0)) for row in rows]
        lines.append(f"| {name} | {' | '.join(cells)} | {growth(rows, name)} |")
    return lines


def growth(rows: Sequence[Row], name: str) -> str:
    """How much ``name`` grows where nodes become four times as many."""
    first, last = rows[0], rows[-1]
    longer = math.log(last["nodes"] / first["nodes"])
    if not longer or not first.get(name) or not last.get(name):
        return "-"
    power: Any = math.log(last[name] / first[name]) / longer
    return f"{4**power:.2f}"


if __name__ == "__main__":
    main()
