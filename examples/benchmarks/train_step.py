"""Time a training step of a GPT under zc and its peers, side by side.

    python examples/benchmarks/train_step.py                 # 25 million parameters, 2 ranks
    python examples/benchmarks/train_step.py --size 110M
    python examples/benchmarks/train_step.py --ablate zero3  # and without each of its passes
    python examples/benchmarks/train_step.py --link 1gbit    # ranks over a slow network
    python examples/benchmarks/train_step.py --tiny --executor=interpret

All systems start from the same seed and see the same batches; a step is forward, backward and
AdamW. They share one process group of local gloo ranks with one thread each. Rounds are
interleaved: in each, every system takes two steps, of which the second is timed, since the first
finds memory as another system has left it; and each round begins with the next system, so that
whatever else the machine does falls on all of them. DeepSpeed runs after the others, in the
same way, beside DDP alone. The columns:

- *step ms*: from a barrier on; the slowest rank's time, median over rounds. *to DDP* is this median
  over that of the baseline, eager DDP, in the same processes; the next column divides this ratio by
  that of the reference, a row of zc.
- *CPU ms*: CPU time of the whole process in a step, all its threads; median over rounds, mean over
  ranks.
- *sent MB*: bytes that a rank sent over its TCP sockets in a step, as the kernel counts them, and
  those that it read out of other ranks' memory, as zc does on one host (``sockets.py``). One
  barrier, some hundred bytes, is included. ``ZC_DIRECT=0`` makes zc send everything.

The other columns come from each system in processes of its own, first with empty caches of Inductor
and zc, then again with the caches that this has left; ``--skip-alone`` leaves them out:

- *cold s*, *warm s*: the first two steps, after a trivial compilation, without and with caches.
- *resident MB*: most memory of the process, libraries included, in steps after these two.
- *calls*: calls of gloo in a step, as the profiler counts them; messages between two ranks count,
  and so do direct exchanges.
- *peak MB*: most bytes of live tensors in a step (``live_bytes.py``). Parameters, optimizer state
  and communication buffers count once they have been used; what a system keeps inside gloo does
  not.

A second table splits the step of zc: *compute* is the compiled step without communication, *wire*
what the step's collectives take when nothing else runs, repeated after each timed step, and *rest*
what is left: zc's own part, less what overlaps and what a sharded update saves.

At the end it compares the losses of all steps; systems without communication see other gradients
and are left out of that. Tables go to standard output, all figures to
``out/benchmarks/train_step.json``.
"""

import json
import os
import sys
import tempfile
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import slow_link
from alone import run_memory, run_start
from arguments import parse_arguments
from catalogue import BASELINE, apart
from ranks import run_ranks
from rounds import run_rounds
from summary import Row, losses_agree, rows_of, settings_of, start_figures
from table import markdown


def main() -> None:
    args = parse_arguments()
    if args.link:
        slow_link.start_inside()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(args, Path(folder))
    settings = settings_of(args, os.cpu_count() or 1)
    text = markdown(rows, args.reference, settings)
    print(text)
    systems = [asdict(row) for row in rows]
    figures = {"settings": settings, "reference": args.reference, "systems": systems}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "train_step.json").write_text(json.dumps(figures, indent=2) + "\n")
    if args.save:
        args.save.write_text(f"# A training step, side by side\n\n{text}\n")
    if not losses_agree(rows):
        sys.exit(1)


def measure(args: Namespace, folder: Path) -> list[Row]:
    """The rows of the table; ``folder`` takes the caches and the figures of each rank."""
    caches = folder / "caches"
    alone = {} if args.skip_alone else {n: _alone(args, n, i, folder) for i, n in _numbered(args)}
    together = [name for name in args.systems if not apart(name)]
    ranks = run_ranks(run_rounds, args, together, caches, folder=folder / "together")
    rows = rows_of(ranks, together, alone)
    others = [name for name in args.systems if apart(name)]
    if others:
        ranks = run_ranks(run_rounds, args, [BASELINE, *others], caches, folder=folder / "apart")
        rows += rows_of(ranks, others, alone)
    return rows


def _numbered(args: Namespace) -> Any:
    return enumerate(args.systems)


def _alone(args: Namespace, name: str, number: int, folder: Path) -> dict[str, Any]:
    """Start a system without and, where compiled code is cached, with caches; measure the last."""
    caches = folder / "caches"
    cold, warm = folder / f"{number}-cold", folder / f"{number}-warm"
    if args.executor == "interpret":
        return start_figures(run_ranks(run_memory, args, name, caches, folder=cold), None)
    first = run_ranks(run_start, args, name, caches, folder=cold)
    return start_figures(first, run_ranks(run_memory, args, name, caches, folder=warm))


if __name__ == "__main__":
    main()
