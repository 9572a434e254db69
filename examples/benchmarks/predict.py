"""Predicted against measured: step time and peak memory of zc, for six pass pipelines.

    zc calibrate --ranks 2 --threads 1 --out mine.yaml
    python examples/benchmarks/predict.py --device mine.yaml
    python examples/benchmarks/predict.py                       # calibrates first

Both predictions are made from the whole step, optimizer included, before it runs: time by
simulating the program on the device file (``zc.cost.simulate``), peak from the lifetimes of its
values (``zc.program.liveness``). Then the same step runs on local gloo ranks with one thread each:
*measured* is the median over runs of the slowest rank's time from a barrier on, *spread* the
fastest and the slowest run. Runs are interleaved: every pass pipeline takes one step, then every
one the next. *peak* is of live tensors (``live_bytes.py``) in one more step, on the rank with the
most. *within* says whether time is within 15% of measured, and peak within 5%.

A machine that is shared does not keep its speed for as long as it takes to measure it: with
``--starts N`` all of it happens N times, calibration included, in new processes, and figures are
medians over starts. The ratio of times is taken in each start; the lowest and the highest follow in
brackets.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from live_bytes import install
from prediction import Figures, Subject, megabytes, parser_of, publish, rows_of, table

from zc.devices.calibrate import Calibration, calibrate
from zc.devices.writer import device_text
from zc.pipelines.pipeline import PassPipeline

HEAD = (
    "pass pipeline", "predicted ms", "measured", "spread", "ratio", "exposed ms",
    "predicted peak MB", "measured", "ratio", "within 15%, 5%",
)  # fmt: skip
PIPELINES = Path(__file__).resolve().parents[1] / "pipelines"
NAMES = ("zero0", "zero1", "zero2", "zero3", str(PIPELINES / "zero2_fused_update.yaml"),
         str(PIPELINES / "zero3_bucketed.yaml"))  # fmt: skip
TIME_BOUND, PEAK_BOUND = 0.15, 0.05
WARM_UP = 2


def main() -> None:
    args = parse_arguments()
    starts = [_started(args) for _ in range(args.starts)]
    rows = [over_starts(found) for found in zip(*starts, strict=True)]
    text = table(HEAD, [_cells(row) for row in rows])
    publish("predict", "Time and memory: predicted and measured", text, rows, args)


def _started(args: argparse.Namespace) -> list[Figures]:
    """The rows of new processes, after a calibration where no device is given."""
    with tempfile.TemporaryDirectory() as folder:
        device = args.device
        if device is None:
            device = str(Path(folder, "calibrated.yaml"))
            how = Calibration(args.ranks, 1, args.executor == "inductor", args.quick)
            Path(device).write_text(device_text(calibrate(how)))
        return rows_of(measure, combine, argparse.Namespace(**{**vars(args), "device": device}))


def over_starts(starts: Sequence[Figures]) -> Figures:
    """One row of several: median times, the runs of all, and the peak that was predicted worst."""
    worst = max(starts, key=lambda row: abs(row["peak_ratio"] - 1))
    times = ("predicted_seconds", "exposed_seconds", "measured_seconds", "time_ratio")
    medians = {key: median(row[key] for row in starts) for key in times}
    runs = [seconds for row in starts for seconds in row["seconds"]]
    ratios = [row["time_ratio"] for row in starts]
    return worst | medians | {"seconds": runs, "time_ratios": ratios}


def parse_arguments() -> argparse.Namespace:
    parser = parser_of("compare zc's predictions with measurements", layers=6, width=448)
    parser.add_argument("--runs", type=int, default=5, help="timed steps of each pass pipeline")
    parser.add_argument("--starts", type=int, default=1, help="how often to start and calibrate")
    parser.add_argument("--executor", default="inductor", choices=["inductor", "interpret"])
    parser.add_argument("--pipelines", nargs="+", default=list(NAMES))
    parser.add_argument("--device", help="a device file; measured when left out")
    parser.add_argument("--quick", action="store_true", help="calibrate roughly")
    return parser.parse_args()


def measure(rank: int, args: argparse.Namespace) -> Figures:
    """The figures of all pass pipelines on this rank."""
    torch.compiler.config.recompile_limit = 64
    install()
    pipelines = [replace(PassPipeline.resolve(n), device=args.device) for n in args.pipelines]
    subjects = [Subject(args, pipeline) for pipeline in pipelines]
    for turn in range(WARM_UP + args.runs):
        for subject in subjects:
            subject.run(timed=turn >= WARM_UP)
    return {"rows": [subject.figures | {"measured_peak": subject.peak()} for subject in subjects]}


def combine(ranks: tuple[Figures, ...]) -> Figures:
    """The figures of one pass pipeline: each run takes as long as its slowest rank."""
    runs = [max(times) for times in zip(*(rank["seconds"] for rank in ranks), strict=True)]
    peak = max(rank["measured_peak"] for rank in ranks)
    return ranks[0] | {
        "seconds": runs, "measured_seconds": median(runs), "measured_peak": peak,
        "time_ratio": ranks[0]["predicted_seconds"] / median(runs),
        "peak_ratio": ranks[0]["predicted_peak"] / peak,
    }  # fmt: skip


def _cells(row: Figures) -> list[str]:
    bounds = ((row["time_ratio"], TIME_BOUND), (row["peak_ratio"], PEAK_BOUND))
    return [
        row["pipeline"],
        _ms(row["predicted_seconds"]),
        _ms(row["measured_seconds"]),
        f"{_ms(min(row['seconds']))}-{_ms(max(row['seconds']))}",
        f"{row['time_ratio']:.2f}{_range(row['time_ratios'])}",
        _ms(row["exposed_seconds"]),
        megabytes(row["predicted_peak"]),
        megabytes(row["measured_peak"]),
        f"{row['peak_ratio']:.3f}",
        ", ".join("yes" if abs(ratio - 1) <= bound else "no" for ratio, bound in bounds),
    ]


def _range(ratios: Sequence[float]) -> str:
    return f" ({min(ratios):.2f}-{max(ratios):.2f})" if len(ratios) > 1 else ""


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.1f}"


if __name__ == "__main__":
    main()
