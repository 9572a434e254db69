"""The memory cap and what a step takes: gathers and reductions are moved up to it, never beyond.

    python examples/benchmarks/caps.py

ZeRO-3 with ``keep_gathered``, ``prefetch_gathers`` and ``delay_reductions`` under caps from what
the step takes without these passes (*least*) to what it takes with them and no limit. They move
collectives where that saves time on ``--device``: by default a GPU, on which much can be hidden, so
that they use the room there is. The schedule then runs on local gloo ranks, where its memory is
the same. *measured* is of live tensors (``live_bytes.py``), on the rank with the most.
"""

import argparse
from dataclasses import replace
from typing import Any

import torch
from live_bytes import install
from prediction import Figures, Subject, megabytes, parser_of, publish, rows_of, table
from zc.passes.delay_reductions import DelayReductions
from zc.passes.keep_gathered import KeepGathered
from zc.passes.prefetch_gathers import PrefetchGathers

from zc.pipelines.pipeline import PassPipeline
from zc.program.units import Bytes

HEAD = ("memory cap", "cap MB", "predicted peak MB", "measured", "predicted ms", "within the cap")
ZERO_3: list[Any] = [{"shard_params": {"zero_stage": 3}}, "shard_update", "clean_graph",
                     "lower_update"]  # fmt: skip
SCHEDULERS = (KeepGathered(), PrefetchGathers(), DelayReductions())
PLENTY = 1 << 40  # bytes


def main() -> None:
    args = parse_arguments()
    rows = rows_of(measure, combine, args)
    text = table(HEAD, [_cells(row) for row in rows])
    publish("caps", "Peak memory under a cap", text, rows, args)


def parse_arguments() -> argparse.Namespace:
    parser = parser_of("compare a step's memory with its cap", layers=3, width=192)
    parser.add_argument("--executor", default="inductor", choices=["inductor", "interpret"])
    parser.add_argument("--steps", type=int, default=4, help="caps, from the least on")
    parser.add_argument("--device", default="h100", help="what the passes save time on")
    return parser.parse_args()


def measure(rank: int, args: argparse.Namespace) -> Figures:
    """The figures of every cap on this rank."""
    torch.compiler.config.recompile_limit = 64
    install()
    plain = replace(PassPipeline.resolve(ZERO_3), device=args.device)
    least = Subject(args, plain).figures["predicted_peak"]
    free = Subject(args, _capped(plain, PLENTY))
    most = free.figures["predicted_peak"]
    caps = [least + (most - least) * i // args.steps for i in range(args.steps)]
    subjects = [Subject(args, _capped(plain, cap)) for cap in caps]
    rows = [_run(s) | {"cap": cap} for s, cap in zip(subjects, caps, strict=True)]
    return {"rows": [*rows, _run(free) | {"cap": None}]}


def _capped(plain: PassPipeline, cap: int) -> PassPipeline:
    *others, lowering = plain.passes
    return replace(plain, passes=(*others, *SCHEDULERS, lowering), memory_cap=Bytes(cap))


def _run(subject: Subject) -> Figures:
    for _ in range(2):  # compiles, and makes optimizer state
        subject.run(timed=False)
    return subject.figures | {"measured_peak": subject.peak()}


def combine(ranks: tuple[Figures, ...]) -> Figures:
    """The figures under one cap."""
    return ranks[0] | {"measured_peak": max(rank["measured_peak"] for rank in ranks)}


def _cells(row: Figures) -> list[str]:
    cap, peak = row["cap"], row["measured_peak"]
    return [
        "none" if cap is None else f"{cap} bytes",
        megabytes(cap),
        megabytes(row["predicted_peak"]),
        megabytes(peak),
        f"{row['predicted_seconds'] * 1000:.3f}",
        "-" if cap is None else "yes" if peak <= cap else "no",
    ]


if __name__ == "__main__":
    main()
