"""How long each way of carrying out a collective takes, by size, and which one is the fastest.

    python examples/benchmarks/wire.py --ranks 2

Ways take turns, all ranks begin together, and what the slowest rank took counts: medians over all
rounds. Sizes are those of the full tensors of a bucket together. The last lines are a table as
``zc.comm.choice.use_measured`` takes it.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from zc.comm.choice import offered, use_measured
from zc.comm.ways import WAYS
from zc.comm.wire import all_gather_bucket, reduce_scatter_bucket
from zc.devices import ways
from zc.run.heap import keep_freed

STARTERS: dict[str, Callable[..., Any]] = {
    "all_gather": all_gather_bucket,
    "reduce_scatter": reduce_scatter_bucket,
}
Times = dict[tuple[str, int, str], float]  # op, bytes, way: seconds


def main() -> None:
    args = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(measure, (args.ranks, folder, args), nprocs=args.ranks)
        times: Times = torch.load(Path(folder, "times.pt"), weights_only=False)
    measured = table(times, args.ranks)
    print("\n".join([*lines(times, args), "", str(measured)]))
    args.out.mkdir(parents=True, exist_ok=True)
    rows = [{"op": op, "bytes": n, "way": way, "seconds": t} for (op, n, way), t in times.items()]
    (args.out / "wire.json").write_text(json.dumps({"rows": rows, "table": measured}, indent=2))


def measure(rank: int, world: int, folder: str, args: argparse.Namespace) -> None:
    """Time everything on one rank; the first one writes what the slowest took."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    keep_freed()  # as programs do
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    times: Times = {}
    for op in WAYS:
        names = offered(op, dist.group.WORLD)
        for size in args.sizes:
            tensors = bucket(op, size, args.items, world)
            for name, seconds in in_turns(op, names, tensors, args.rounds).items():
                times[op, size, name] = seconds
    if rank == 0:
        torch.save(times, Path(folder, "times.pt"))
    dist.destroy_process_group()


def bucket(op: str, size: int, items: int, world: int) -> list[torch.Tensor]:
    """Operands of one rank, for full tensors of ``size`` bytes together."""
    rows = max(1, size // (4 * items * world))
    return [torch.randn(rows * (1 if op == "all_gather" else world)) for _ in range(items)]


def in_turns(op: str, names: list[str], tensors: list[torch.Tensor], rounds: int) -> Any:
    """Median seconds of each way."""
    found: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(-2, rounds):
        for name in names:
            use_measured({"gloo": {op: {0: {0: name}}}})
            seconds = slowest(lambda: STARTERS[op](tensors, dist.group.WORLD)[0].wait())
            if round_ >= 0:
                found[name].append(seconds)
    return {name: statistics.median(values) for name, values in found.items()}


def slowest(run: Callable[[], Any]) -> float:
    """Seconds of ``run`` on the slowest rank."""
    dist.barrier()
    begin = time.perf_counter()
    run()
    taken = torch.tensor([time.perf_counter() - begin])
    dist.all_reduce(taken, dist.ReduceOp.MAX)
    return taken.item()


def fastest(times: Times, op: str, size: int) -> str:
    """The way that took the least time."""
    tried = [name for name in WAYS[op] if (op, size, name) in times]
    return min(tried, key=lambda name: times[op, size, name])


def table(times: Times, ranks: int) -> dict[str, Any]:
    """The fastest ways, from the number of ranks and the sizes that were measured."""
    by_op: dict[str, dict[str, dict[int, float]]] = {}
    for (op, size, name), seconds in times.items():
        by_op.setdefault(op, {}).setdefault(name, {})[size] = seconds
    return {"gloo": {op: {ranks: ways.fastest(by_way)} for op, by_way in by_op.items()}}


def lines(times: Times, args: argparse.Namespace) -> list[str]:
    """A Markdown table of milliseconds."""
    names = list(dict.fromkeys(name for known in WAYS.values() for name in known))
    head = ["op", "KB", *names, "fastest"]
    found = [_line(head), _line(["---", *["---:"] * (len(names) + 1), "---"])]
    for op, size in dict.fromkeys((op, size) for op, size, _ in times):
        cells = [times.get((op, size, name)) for name in names]
        shown = ["-" if cell is None else f"{cell * 1e3:.2f}" for cell in cells]
        found.append(_line([op, f"{size / 1000:,.0f}", *shown, fastest(times, op, size)]))
    how = f"{args.ranks} ranks, buckets of {args.items}, ms, medians of {args.rounds} rounds"
    return [*found, "", how]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def parse_arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="time the ways of carrying out collectives")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--items", type=int, default=1, help="tensors in a bucket")
    parser.add_argument("--rounds", type=int, default=15)
    sizes = [4096 * 4**power for power in range(7)]
    parser.add_argument("--sizes", type=int, nargs="+", default=sizes, help="bytes")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    return parser.parse_args(given)


if __name__ == "__main__":
    main()
