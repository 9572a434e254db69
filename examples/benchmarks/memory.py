"""Predicted against measured: live bytes and bytes on the wire of zc, for ZeRO stages 0 to 3.

    python examples/benchmarks/memory.py

Both predictions are made from the program before it runs: peak bytes from the lifetimes of its
values, as the verifier uses them; bytes sent from its table of collectives. Then one step of the
same program runs on local gloo ranks, node by node by default. *peak* is of forward and backward
without optimizer state, which no program of this kind touches; ``live_bytes.py`` measures it.
*sent* is per rank: the formula, zc's own count at run time, and the kernel's count on this
process's sockets, where one barrier and gloo's headers come on top. Results are of rank 0; with
``inductor`` the measured peak is smaller than predicted, since fused kernels keep less.
"""

import argparse
import json
import os
import sys
import tempfile
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from live_bytes import LiveBytes, install
from sockets import bytes_sent
from systems import GPT, SEED, Config
from systems_zc import compile_zc

import zc
from zc.comm.wire import METER
from zc.program.collectives import collectives_of
from zc.program.liveness import peak_bytes

HEAD = (
    "program", "predicted peak MB", "measured", "ratio", "predicted sent MB", "metered", "sockets"
)  # fmt: skip
GROUP_TIMEOUT = timedelta(minutes=5)
Figures = dict[str, Any]


def main() -> None:
    args = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run_rank, (Path(folder), args), nprocs=args.ranks)
        figures: list[Figures] = json.loads(Path(folder, "figures.json").read_text())
    text = markdown(figures)
    print(text)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "memory.json").write_text(json.dumps(figures, indent=2) + "\n")
    if args.save:
        args.save.write_text(f"# Memory and volume: predicted and measured\n\n{text}\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="compare zc's predictions with measurements")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--rows", type=int, default=2, help="passages in a batch, per rank")
    parser.add_argument("--length", type=int, default=128, help="bytes in a passage")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--executor", default="interpret", choices=["inductor", "interpret"])
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    parser.add_argument("--save", type=Path, help="also write the table into this file")
    return parser.parse_args()


def run_rank(rank: int, folder: Path, args: argparse.Namespace) -> None:
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # local processes need no other network
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    install()
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=args.ranks,
        timeout=GROUP_TIMEOUT,
    )  # fmt: skip
    figures = [compare(args, level, stage) for level in args.levels for stage in args.stages]
    if rank == 0:
        (folder / "figures.json").write_text(json.dumps(figures))
    dist.barrier()
    dist.destroy_process_group()


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
    before = bytes_sent()
    with live:
        step(tokens, tokens)
    dist.barrier()  # everything sent has arrived
    after = bytes_sent()
    sent = None if after is None or before is None else after - before
    return {"measured_peak": live.peak, "metered_sent": METER.total(), "socket_sent": sent}


def markdown(figures: list[Figures]) -> str:
    """A table, one row for each program."""
    rows = [HEAD, ["---", *["---:"] * (len(HEAD) - 1)], *map(_cells, figures)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cells(row: Figures) -> list[str]:
    return [
        row["program"],
        _megabytes(row["predicted_peak"]),
        _megabytes(row["measured_peak"]),
        f"{row['measured_peak'] / row['predicted_peak']:.3f}",
        _megabytes(row["predicted_sent"]),
        _megabytes(row["metered_sent"]),
        _megabytes(row["socket_sent"]),
    ]


def _megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:,.3f}"


if __name__ == "__main__":
    main()
