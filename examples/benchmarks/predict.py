"""Predicted against measured: step time and peak memory of zc, for six pass pipelines.

    zc calibrate --ranks 2 --threads 1 --out mine.yaml
    python examples/benchmarks/predict.py --device mine.yaml
    python examples/benchmarks/predict.py                       # calibrates first

Both predictions are made from the whole step, optimizer included, before it runs: time by
simulating the program on the device file (``zc.cost.simulate``), peak from the lifetimes of its
values. Calibration has not seen the model. Then the same step runs on local gloo ranks with one
thread each: *measured* is the median over runs of the slowest rank's time from a barrier on,
*spread* the fastest and the slowest run. Runs are interleaved: every pass pipeline takes one step,
then every one the next. *peak* is of live tensors (``live_bytes.py``) in one more step.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from live_bytes import LiveBytes, install
from memory import GROUP_TIMEOUT
from systems import GPT, SEED, Config

import zc
from zc.cost.simulate import simulate
from zc.devices.calibrate import Calibration, calibrate
from zc.devices.writer import device_text
from zc.pipelines.pipeline import PassPipeline

HEAD = (
    "pass pipeline", "predicted ms", "measured", "spread", "ratio", "exposed ms",
    "predicted peak MB", "measured", "ratio",
)  # fmt: skip
PIPELINES = Path(__file__).resolve().parents[1] / "pipelines"
NAMES = ("zero0", "zero1", "zero2", "zero3", str(PIPELINES / "zero2_fused_update.yaml"),
         str(PIPELINES / "zero3_bucketed.yaml"))  # fmt: skip
RATE = 3e-4
WARM_UP = 2
Figures = dict[str, Any]


def main() -> None:
    args = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        if args.device is None:
            args.device = str(Path(folder, "calibrated.yaml"))
            how = Calibration(args.ranks, 1, args.executor == "inductor", args.quick)
            Path(args.device).write_text(device_text(calibrate(how)))
        mp.spawn(run_rank, (Path(folder), args), nprocs=args.ranks)
        ranks = [json.loads(Path(folder, f"{r}.json").read_text()) for r in range(args.ranks)]
    rows = [combine(found) for found in zip(*ranks, strict=True)]
    text = markdown(rows)
    print(text)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "predict.json").write_text(json.dumps(rows, indent=2) + "\n")
    if args.save:
        args.save.write_text(f"# Time and memory: predicted and measured\n\n{text}\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="compare zc's predictions with measurements")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=448)
    parser.add_argument("--rows", type=int, default=2, help="passages in a batch, per rank")
    parser.add_argument("--length", type=int, default=128, help="bytes in a passage")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5, help="timed steps of each pass pipeline")
    parser.add_argument("--executor", default="inductor", choices=["inductor", "interpret"])
    parser.add_argument("--pipelines", nargs="+", default=list(NAMES))
    parser.add_argument("--device", help="a device file; measured when left out")
    parser.add_argument("--quick", action="store_true", help="calibrate roughly")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    parser.add_argument("--save", type=Path, help="also write the table into this file")
    return parser.parse_args()


def run_rank(rank: int, folder: Path, args: argparse.Namespace) -> None:
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # local processes need no other network
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.compiler.config.recompile_limit = 64
    install()
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=args.ranks,
        timeout=GROUP_TIMEOUT,
    )  # fmt: skip
    subjects = [Subject(args, name) for name in args.pipelines]
    for turn in range(WARM_UP + args.runs):
        for subject in subjects:
            subject.run(timed=turn >= WARM_UP)
    figures = [subject.figures | {"measured_peak": subject.peak()} for subject in subjects]
    (folder / f"{rank}.json").write_text(json.dumps(figures))
    dist.barrier()
    dist.destroy_process_group()


class Subject:
    """One pass pipeline: its prediction, and the compiled step."""

    def __init__(self, args: argparse.Namespace, name: str) -> None:
        pipeline = PassPipeline.resolve(name)
        pipeline = replace(pipeline, device=args.device, executor=args.executor)
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
        with live:
            self.step(self.tokens)
        return live.peak


def predict(step: Any, tokens: torch.Tensor, pipeline: PassPipeline) -> Figures:
    """Time and peak of the program, which is captured and not run."""
    program = zc.capture(step, tokens, passes=pipeline)
    assert program.device is not None
    found = simulate(program, program.device, fused=pipeline.executor == "inductor")
    return {
        "predicted_seconds": found.seconds,
        "exposed_seconds": found.exposed_seconds,
        "predicted_peak": found.peak_bytes,
    }


def combine(ranks: tuple[Figures, ...]) -> Figures:
    """The figures of one pass pipeline: each run takes as long as its slowest rank."""
    runs = [max(times) for times in zip(*(rank["seconds"] for rank in ranks), strict=True)]
    peak = max(rank["measured_peak"] for rank in ranks)
    return ranks[0] | {
        "seconds": runs, "measured_seconds": median(runs), "measured_peak": peak,
        "time_ratio": ranks[0]["predicted_seconds"] / median(runs),
        "peak_ratio": ranks[0]["predicted_peak"] / peak,
    }  # fmt: skip


def markdown(rows: list[Figures]) -> str:
    """A table, one row for each pass pipeline; ratios are predicted over measured."""
    cells = [HEAD, ["---", *["---:"] * (len(HEAD) - 1)], *map(_cells, rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def _cells(row: Figures) -> list[str]:
    return [
        row["pipeline"],
        _ms(row["predicted_seconds"]),
        _ms(row["measured_seconds"]),
        f"{_ms(min(row['seconds']))}-{_ms(max(row['seconds']))}",
        f"{row['time_ratio']:.2f}",
        _ms(row["exposed_seconds"]),
        f"{row['predicted_peak'] / 1e6:,.2f}",
        f"{row['measured_peak'] / 1e6:,.2f}",
        f"{row['peak_ratio']:.3f}",
    ]


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.1f}"


if __name__ == "__main__":
    main()
