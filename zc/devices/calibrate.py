"""``zc calibrate``: a device description of this machine and of a group of ranks on it.

    device = calibrate(ranks=2)
    Path("mine.yaml").write_text(device_text(device))

Local processes form a group (gloo on CPUs, NCCL where every rank has a GPU), measure together, and
leave their figures in files; the slowest rank's count. What lies between machines is not measured:
it is taken from the built-in device that is most like this one, and the notes say so.
"""

import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from zc.comm.choice import use_measured
from zc.cost.device import Device, Link
from zc.devices.default import gpu_named
from zc.devices.fits import fit_link, slowest, two_rates
from zc.devices.measure_compute import DTYPES, measure_compute, samples_of
from zc.devices.measure_links import measure_links, memory_bytes
from zc.devices.measure_ways import measure_ways, way_times
from zc.devices.measure_wire import OPS, link_samples, measure_wire
from zc.devices.reader import builtin_device
from zc.devices.stopwatch import Stopwatch
from zc.devices.ways import Ways, fastest
from zc.errors import ExecutionError
from zc.run.heap import keep_freed

DEADLINE = 180.0  # seconds; measuring takes well under sixty
_SHORTEST = 1e-9  # seconds; a file has no room for less
Figures = dict[str, float]


@dataclass(frozen=True)
class Calibration:
    """How to measure.

    Attributes:
        ranks: processes, each with a GPU of its own where there are as many.
        threads: of each process; 0 divides the cores among the ranks.
        compiled: whether to compile a small region, which takes some seconds.
        quick: the smallest sizes only, for tests of the procedure.
        name: of the device.
    """

    ranks: int = 1
    threads: int = 0
    compiled: bool = True
    quick: bool = False
    name: str = "calibrated"

    @property
    def device_type(self) -> str:
        """``cuda`` where every rank can have a GPU."""
        return "cuda" if 0 < self.ranks <= torch.cuda.device_count() else "cpu"

    @property
    def threads_per_rank(self) -> int:
        """Threads that one rank computes with."""
        return self.threads or max(1, (os.cpu_count() or 1) // self.ranks)


def calibrate(how: Calibration) -> Device:
    """Measure this machine and a group of ``how.ranks`` processes on it.

    Raises:
        ExecutionError: for no ranks at all, when the processes do not end in time, and when one of
            them fails.
    """
    if how.ranks < 1:
        raise ExecutionError(f"cannot calibrate {how.ranks} ranks; take 1 or more")
    with tempfile.TemporaryDirectory() as folder:
        _spawn(how, Path(folder))
        files = [Path(folder, f"{rank}.json") for rank in range(how.ranks)]
        figures = [json.loads(file.read_text()) for file in files]
    return device_from(
        how, slowest(figures), memory_bytes(torch.device(how.device_type), how.ranks)
    )


def device_from(how: Calibration, figures: Figures, memory: int) -> Device:
    """The device that ``figures`` describe; see the functions that measure for their names."""
    cuda = how.device_type == "cuda"
    like = gpu_named(torch.cuda.get_device_name(0)) if cuda else "cpu"
    base = builtin_device(like)
    products = {str(d).removeprefix("torch."): d for d in DTYPES}
    lines = {name: samples_of(figures, f"product {name}") for name in products}
    links = {name: fit_link(samples) for name, samples in lines.items() if samples}
    flops = {name: link.bandwidth for name, link in links.items()}
    op = max(figures["op"], _SHORTEST)
    pointwise = [(n, max(s - op, s / 2)) for n, s in samples_of(figures, "pointwise")]
    cache_bytes, cache_bandwidth, memory_bandwidth = two_rates(pointwise)
    device = replace(
        base,
        name=how.name,
        memory_bytes=memory,
        memory_bandwidth=memory_bandwidth,
        cache_bytes=int(cache_bytes),
        cache_bandwidth=cache_bandwidth,
        flops=flops,
        op_seconds=op,
        region_seconds=max(0.0, figures.get("region", op) - op),
        product_seconds=max(links["float32"].latency, op),
        attention=_attention(figures, flops),
        host=_link(samples_of(figures, "host")),
        file=_link(samples_of(figures, "file")),
        notes=notes(how, like),
    )
    return device if how.ranks == 1 else _with_group(device, how.ranks, figures)


def _attention(figures: Figures, flops: dict[str, float]) -> float:
    """Share of the rate of matrix products that attention reaches."""
    (name,) = (name for name in figures if name.startswith("attention"))
    _, dtype, operations = name.split(" ")
    return min(1.0, float(operations) / figures[name] / flops.get(dtype, flops["float32"]))


def _with_group(device: Device, ranks: int, figures: Figures) -> Device:
    """``device`` with what its ranks measured together."""
    links = {op: _link(link_samples(figures, op)) for op in OPS}
    gather = links["all_gather"]
    return replace(
        device,
        ranks_per_node=ranks,
        issue_seconds=figures["issue"],
        node=Link(
            max(gather.latency / (ranks - 1), _SHORTEST),
            gather.bandwidth,
            round(figures["interference"], 3),
        ),
        collectives=links,
        measured_ranks=ranks,
        ways=_ways(figures),
        one_lane=bool(figures["one_lane"]),
    )


def _ways(figures: Figures) -> Ways:
    """The fastest ways, on the backend that was measured; nothing where there is no choice."""
    times = way_times(figures)
    return {"gloo": {op: fastest(by_way) for op, by_way in times.items()}} if times else {}


def _link(samples: list[tuple[float, float]]) -> Link:
    found = fit_link(samples)
    return Link(max(found.latency, _SHORTEST), found.bandwidth)


def notes(how: Calibration, like: str) -> str:
    """When and how the numbers were measured, and which were not."""
    kind = "GPU and NCCL" if how.device_type == "cuda" else "CPU and gloo"
    ranks = f"{how.ranks} {'rank' if how.ranks == 1 else 'ranks'}"
    threads = f"{how.threads_per_rank} {'thread' if how.threads_per_rank == 1 else 'threads'}"
    group = "" if how.ranks > 1 else "; one rank measures no collectives: those are guesses"
    return (
        f"zc calibrate, {date.today().isoformat()}, torch {torch.__version__}: {ranks} of "
        f"{threads} at the same time, {kind}, medians, the slowest rank; network as in "
        f"'{like}'{group}"
    )


def _spawn(how: Calibration, folder: Path) -> None:
    """Run the ranks; those that still run at the deadline are killed."""
    context = mp.spawn(_rank, (how, folder), nprocs=how.ranks, join=False)
    deadline = time.monotonic() + DEADLINE
    while not _ended(context):
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            raise ExecutionError(
                f"calibration of {how.ranks} ranks did not end within {DEADLINE:g} s; the machine "
                f"may be too busy: try fewer --ranks"
            )


def _ended(context: mp.ProcessContext) -> bool:
    try:
        return context.join(timeout=1.0)
    except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ExecutionError(f"calibration failed on a rank: {reason}") from error


def _rank(rank: int, how: Calibration, folder: Path) -> None:
    """Measure on one rank, and write its figures down."""
    torch.set_num_threads(how.threads_per_rank)
    device = (
        torch.device(how.device_type, rank) if how.device_type == "cuda" else torch.device("cpu")
    )
    if device.type == "cpu":
        keep_freed()  # as programs do
    if sys.platform == "linux" and device.type == "cpu":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # local processes need no other network
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=how.ranks,
        timeout=timedelta(seconds=DEADLINE),
    )
    assert dist.group.WORLD is not None
    figures = _measure(how, Stopwatch(device, 2 if how.quick else 5), dist.group.WORLD)
    Path(folder, f"{rank}.json").write_text(json.dumps(figures))
    dist.barrier()
    dist.destroy_process_group()


def _measure(how: Calibration, watch: Stopwatch, group: dist.ProcessGroup) -> Figures:
    dist.barrier(group)
    with torch.no_grad():
        found = measure_compute(watch, compiled=how.compiled, quick=how.quick)
        dist.barrier(group)
        if how.ranks > 1:
            found |= _agreed_ways(measure_ways(watch, group, quick=how.quick), group)
            found |= measure_wire(watch, group, quick=how.quick)
        return found | (measure_links(watch) if dist.get_rank(group) == 0 else {})


def _agreed_ways(mine: Figures, group: dist.ProcessGroup) -> Figures:
    """``mine``, after all ranks have settled on the ways that they will measure and go by."""
    ranks: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(ranks, mine, group)
    chosen = _ways(slowest(ranks))
    use_measured(
        {
            backend: {op: {len(ranks): by_bytes} for op, by_bytes in ops.items()}
            for backend, ops in chosen.items()
        }
    )
    return mine
