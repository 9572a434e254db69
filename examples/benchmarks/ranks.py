"""Local ranks on gloo, one thread each, which share a store in a folder."""

import json
import os
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import slow_link
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from zc.run.heap import keep_freed

GROUP_TIMEOUT = timedelta(minutes=20)  # a rank may compile for long while the others wait
Figures = dict[str, Any]


def run_ranks(work: Callable[..., Figures], args: Any, *rest: Any, folder: Path) -> list[Figures]:
    """What ``work(rank, args, *rest)`` returns on each rank, in processes of their own.

    ``args.ranks`` says how many, ``args.link`` over what: the machine's loopback, or a network of
    that rate (``slow_link.py``). ``folder`` must not exist.
    """
    folder.mkdir(parents=True)
    mp.get_context("forkserver").set_forkserver_preload(["torch", "zc"])
    mp.start_processes(
        _run_rank, (folder, work, args, *rest), nprocs=args.ranks, start_method="forkserver"
    )
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(args.ranks)]


def _run_rank(rank: int, folder: Path, work: Callable[..., Figures], args: Any, *rest: Any) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    keep_freed()  # for all systems from the beginning, as zc.shard does
    if args.link:
        os.environ["GLOO_SOCKET_IFNAME"] = slow_link.plug_in(rank, args.link)
    elif sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # local processes need no other network
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=args.ranks,
        timeout=GROUP_TIMEOUT,
    )  # fmt: skip
    figures = work(rank, args, *rest)
    (folder / f"{rank}.json").write_text(json.dumps(figures))
    dist.barrier()
    dist.destroy_process_group()
