"""Time a training step of a GPT under DistributedDataParallel, FSDP2 and zc, side by side.

    python examples/benchmarks/train_step.py                # 25 million parameters, 2 ranks
    python examples/benchmarks/train_step.py --tiny --executor=interpret

All systems live in one process group of local gloo ranks with one thread each. They start from the
same seed and see the same batches. Rounds are interleaved: in each, every system takes one step,
and each round begins with the next system, so that whatever else the machine does falls on all of
them. The columns:

- *step ms*: forward, backward and update, from a barrier on; the slowest rank's time, median over
  rounds. *ratio* is this median over that of the first system, not a median of ratios.
- *CPU ms*: CPU time of the whole process in a step, all its threads; median over rounds, mean over
  ranks.
- *peak MB*: most bytes of live tensors (``live_bytes.py``) in forward and backward, *update MB* in
  the update; the larger of the ranks, taken in steps that are not timed. Where the whole step is
  compiled (zc level 2), the update begins with its first generated kernel. Parameters, optimizer
  state and communication buffers count once they have been used; what a system keeps inside gloo
  does not.
- *sent MB*: bytes that a rank sent over its TCP sockets in a step, as the kernel counts them
  (``sockets.py``): the same measure for all systems. One barrier, some hundred bytes, is included.
  *metered MB*: what zc counts itself, by the formula for a ring.
- *first step s*: the first step with an empty Inductor cache of the system's own, after a trivial
  compilation; *warm s*: the same in a fresh process, with the cache that the first has left.

At the end it compares the losses of all steps. Tables go to standard output, all figures to
``out/benchmarks/train_step.json``.
"""

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rounds import run_rounds
from summary import Row, losses_agree, markdown, settings_of, summarize
from systems import BASELINE, GPT, SYSTEMS, Config

GROUP_TIMEOUT = timedelta(minutes=10)  # a rank may compile for long while the others wait
TINY = {"layers": 1, "width": 64, "rows": 2, "length": 32, "rounds": 3}


def main() -> None:
    args = parse_arguments()
    rows = measure(args)
    settings = settings_of(args, os.cpu_count() or 1)
    text = markdown(rows, settings)
    print(text)
    args.out.mkdir(parents=True, exist_ok=True)
    figures = {"settings": settings, "systems": [asdict(row) for row in rows]}
    (args.out / "train_step.json").write_text(json.dumps(figures, indent=2) + "\n")
    if args.save:
        args.save.write_text(f"# A training step, side by side\n\n{text}\n")
    if not losses_agree(rows):
        sys.exit(1)


def parse_arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="compare zc with DDP and FSDP2")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rows", type=int, default=2, help="passages in a batch, per rank")
    parser.add_argument("--length", type=int, default=128, help="bytes in a passage")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of each system")
    parser.add_argument("--executor", default="inductor", choices=["inductor", "interpret"])
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--tiny", action="store_true", help="a very small model, few rounds")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    parser.add_argument("--save", type=Path, help="also write the table into this file")
    if "--tiny" in (sys.argv if given is None else given):
        parser.set_defaults(**TINY)
    args = parser.parse_args(given)
    args.systems = [BASELINE, *(name for name in args.systems if name != BASELINE)]
    args.config = Config(args.layers, args.width // 64, args.width, args.length)
    with torch.device("meta"):
        args.parameters = sum(p.numel() for p in GPT(args.config).parameters())
    return args


def measure(args: argparse.Namespace) -> list[Row]:
    """Run the ranks, twice where compiled code is cached; the rows of the table."""
    with tempfile.TemporaryDirectory() as folder:
        caches = Path(folder, "caches")
        if args.executor == "interpret":
            only = run_ranks(args, Path(folder, "only"), caches, args.rounds, True)
            return summarize(only, only, args)
        first = run_ranks(args, Path(folder, "first"), caches, args.rounds, False)
        second = run_ranks(args, Path(folder, "second"), caches, 0, True)
        return summarize(first, second, args)


def run_ranks(
    args: argparse.Namespace, folder: Path, caches: Path, rounds: int, memory: bool
) -> list[dict[str, Any]]:
    """Spawn the ranks; the figures of each."""
    folder.mkdir()
    mp.spawn(run_rank, (folder, args, caches, rounds, memory), nprocs=args.ranks)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(args.ranks)]


def run_rank(rank: int, folder: Path, *settings: Any) -> None:
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # local processes need no other network
    torch.set_num_threads(1)
    args = settings[0]
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=args.ranks,
        timeout=GROUP_TIMEOUT,
    )  # fmt: skip
    figures = run_rounds(rank, *settings)
    (folder / f"{rank}.json").write_text(json.dumps(figures))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
