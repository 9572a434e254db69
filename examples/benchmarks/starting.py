"""Batches, and the first steps of a system with caches of its own."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import catalogue
import torch
import torch.distributed as dist
from systems import Trained, backend

from zc.run import compile as regions

FIRST_STEPS = 2  # DDP arranges its buckets anew after its first step, some compile at the second
Batch = tuple[torch.Tensor, torch.Tensor]


def batch(args: Any, rank: int, step: int) -> Batch:
    """The same random bytes for every system; other ones on every rank and in every step."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    tokens = torch.randint(256, (args.rows, args.length + 1), generator=generator)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def start_compiler(executor: str, caches: Path) -> None:
    """One trivial compilation, so that no system is charged for starting the compiler."""
    torch.compiler.config.recompile_limit = 64  # many systems compile the same code
    with own_caches(caches / "start"):
        torch.compile(_double, backend=backend(executor))(torch.ones(8))


def _double(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


def start(name: str, args: Any, rank: int, caches: Path) -> tuple[Trained, float, list[float]]:
    """The system called ``name``, the seconds of its first steps, and their losses."""
    system = catalogue.build(name, args.config, args.executor)
    losses = []
    with own_caches(caches / name.replace(" ", "_").replace("/", "_")):
        dist.barrier()
        started = time.perf_counter()
        for i in range(FIRST_STEPS):
            losses.append(system.step(*batch(args, rank, i)).item())
        seconds = time.perf_counter() - started
    say(rank, f"{name}: first steps after {seconds:.1f} s")
    return system, seconds, losses


@contextmanager
def own_caches(folder: Path) -> Iterator[None]:
    """Folders for Inductor and zc's kernels, and nothing that an earlier system has compiled."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {"TORCHINDUCTOR_CACHE_DIR": folder / "inductor", "ZC_CACHE": folder / "zc"}
    with (
        patch.dict(os.environ, {key: str(path) for key, path in found.items()}),
        patch.dict(regions._compiled, clear=True),  # zc's own, within one process
    ):
        yield


def say(rank: int, text: str) -> None:
    """Progress, beside the table that goes to standard output."""
    if rank == 0:
        print(text, file=sys.stderr, flush=True)
