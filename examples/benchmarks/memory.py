"""Predicted against measured: live bytes and bytes on the wire of zc, for ZeRO stages 0 to 3.

    python examples/benchmarks/memory.py

Both predictions are made from the program before it runs: peak bytes from the lifetimes of its
values, as the verifier uses them; bytes sent from its table of collectives. Then one step of the
same program runs on local gloo ranks, node by node by default. *peak* is of forward and backward
without optimizer state, which no program of this kind touches; ``live_bytes.py`` measures it.
*sent* is per rank: the formula, zc's own count at run time, and what has moved through this
process's sockets and by reading other ranks' memory (``sockets.py``), where one barrier and gloo's
headers come on top. Results are of rank 0.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from live_bytes import LiveBytes, install
from prediction import Figures, megabytes, parser_of, publish, table
from ranks import run_ranks
from sockets import bytes_moved
from systems import GPT, SEED, Config
from systems_zc import compile_zc

import zc
from zc.comm.wire import METER
from zc.program.collectives import collectives_of
from zc.program.liveness import peak_bytes

HEAD = (
    "program", "predicted peak MB", "measured", "ratio", "predicted sent MB", "metered", "moved"
)  # fmt: skip


def main() -> None:
    args = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        rows = run_ranks(compare_all, args, folder=Path(folder, "ranks"))[0]["rows"]
    text = table(HEAD, [_cells(row) for row in rows])
    publish("memory", "Memory and volume: predicted and measured", text, rows, args)


def parse_arguments() -> argparse.Namespace:
    parser = parser_of("compare zc's predictions with measurements", layers=3, width=384)
    parser.add_argument("--executor", default="interpret", choices=["inductor", "interpret"])
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3])
    return parser.parse_args()


def compare_all(rank: int, args: argparse.Namespace) -> Figures:
    """The figures of all programs on this rank."""
    install()
    return {"rows": [compare(args, level, stage) for level in args.levels for stage in args.stages]}


def compare(args: argparse.Namespace, level: int, zero_stage: int) -> Figures:
    """Prediction and measurement of one program on this rank."""
    torch.manual_seed(SEED)
    model: Any = GPT(Config(args.layers, args.width // 64, args.width, args.length))
    if zero_stage:
        zc.shard(model)
    tokens = torch.randint(256, (args.rows, args.length))
    options = {"passes": f"zero{zero_stage}", "executor": args.executor}
    return {
        "program": f"level {level}, zero{zero_stage}",
        **predict(model, level, options, tokens),
        **measure(model, level, options, tokens),
    }


def predict(model: Any, level: int, options: dict[str, Any], tokens: torch.Tensor) -> Figures:
    """Peak and traffic of the program, which is captured and not run."""

    def step(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = model(tokens, targets)
        loss.backward()
        return loss.detach()

    function = model if level == 1 else step
    program = zc.capture(function, tokens, tokens, passes=options["passes"], options=options)
    return {
        "predicted_peak": peak_bytes(program.graph, fused=program.fused),
        "predicted_sent": sum(c.times * c.wire_bytes for c in collectives_of(program)),
    }


def measure(model: Any, level: int, options: dict[str, Any], tokens: torch.Tensor) -> Figures:
    """One step, after one that compiles it, with bytes counted."""
    step = compile_zc(model, level, options)
    step(tokens, tokens)
    model.zero_grad()
    live = LiveBytes([*model.parameters(), *model.buffers(), tokens])
    dist.barrier()
    METER.reset()
    before = bytes_moved()
    with live:
        step(tokens, tokens)
    dist.barrier()  # everything sent has arrived
    after = bytes_moved()
    sent = None if after is None or before is None else after - before
    return {"measured_peak": live.peak, "metered_sent": METER.total(), "moved": sent}


def _cells(row: Figures) -> list[str]:
    return [
        row["program"],
        megabytes(row["predicted_peak"], 3),
        megabytes(row["measured_peak"], 3),
        f"{row['measured_peak'] / row['predicted_peak']:.3f}",
        megabytes(row["predicted_sent"], 3),
        megabytes(row["metered_sent"], 3),
        megabytes(row["moved"], 3),
    ]


if __name__ == "__main__":
    main()
