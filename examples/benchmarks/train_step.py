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
whatever else the machine does falls on all of them. DeepSpeed runs after the others, in the same
way, beside DDP alone. Equal programs in one process differ by up to 8%, for as long as it lives, by
where their tensors lie (Mytkowicz et al., *Producing wrong data without doing anything obviously
wrong*, ASPLOS 2009): with ``--starts N``, all of it happens N times in new processes, each of which
starts the systems in another order, and figures are medians over these starts. The columns:

- *step ms*: from a barrier on; the slowest rank's time, median over rounds. *to DDP* is this median
  over that of the baseline, eager DDP, in the same processes; the next column divides this ratio by
  that of the reference, a row of zc. With several starts, ratios are taken in each of them, and the
  lowest and the highest follow in brackets.
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
and are left out of that. Where passes are ablated, a line for each says whether the program is
another one without it (``programs.py``). Tables go to standard output, all figures to
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
from programs import differences
from ranks import run_ranks
from rounds import run_rounds
from summary import Ranks, Row, losses_agree, rows_of, settings_of, start_figures
from table import markdown


def main() -> None:
    args = parse_arguments()
    if args.link:
        slow_link.start_inside()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(args, Path(folder))
    settings = settings_of(args, os.cpu_count() or 1)
    text = markdown(rows, args.reference, settings)
    if args.ablate:
        text += "\n\n" + "\n".join(differences(args))
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
    rows = rows_of(_started(args, together, folder / "together", caches), together, alone)
    others = [name for name in args.systems if apart(name)]
    if others:
        starts = _started(args, [BASELINE, *others], folder / "apart", caches)
        rows += rows_of(starts, others, alone)
    return rows


def _started(args: Namespace, names: list[str], folder: Path, caches: Path) -> list[Ranks]:
    """The figures of each start of the processes, which begins with another system each time."""
    starts = []
    for i in range(args.starts):
        first = i * len(names) // args.starts
        order = names[first:] + names[:first]
        starts.append(run_ranks(run_rounds, args, order, caches, folder=folder / str(i)))
    return starts


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
