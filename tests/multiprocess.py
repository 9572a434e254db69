"""Functions run on several local processes, and worlds of any size in one process.

    def check(rank, world, x):            # module level, in the test's own file
        ...
        return result                     # anything torch.save can write

    results = run_ranks(check, 2, x)      # raises RanksFailed with every traceback

Ranks are forked from one process that has imported torch and zc and done nothing else. With
``fresh`` each starts a Python of its own, with its own order of sets; that costs about 4 s a rank.
One test starts ranks once for many checks. Passes act whether or not that helps (``acting``),
unless a test asks for ``weighing``. Nothing here can hang: every group has a timeout, and what
still runs at the end of ``timeout`` is killed.
"""

import importlib.util
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from acting import act_always

from zc.torch_private import fake_world

__all__ = ["Outcome", "RanksFailed", "fake_world", "outcomes_of", "run_ranks"]
GROUP_TIMEOUT = timedelta(seconds=30)
GRACE_SECONDS = 10.0  # for the other ranks to end by themselves after the first failure
PRELOADED = ["torch.distributed", "torch._dynamo", "torch._inductor.compile_fx", "zc.backend"]


class RanksFailed(AssertionError):
    """Some rank raised, died or was killed; the message has every rank's traceback."""


@dataclass(frozen=True)
class Outcome:
    """How one rank ended: ``error`` is its traceback, ``None`` when it returned ``result``."""

    result: Any = None
    error: str | None = None


def run_ranks(fn: Callable[..., Any], world: int, *args: Any, **how: Any) -> list[Any]:
    """Run ``fn(rank, world, *args)`` on ``world`` gloo ranks and return their results by rank.

    Keywords are those of ``outcomes_of``.
    """
    outcomes = outcomes_of(fn, world, *args, **how)
    errors = [f"rank {r}:\n{o.error}" for r, o in enumerate(outcomes) if o.error is not None]
    if errors:
        raise RanksFailed("\n".join(errors))
    return [outcome.result for outcome in outcomes]


def outcomes_of(
    fn: Callable[..., Any], world: int, *args: Any, timeout: float = 120, fresh: bool = False,
    weighing: bool = False,
) -> list[Outcome]:  # fmt: skip
    """As ``run_ranks``, but failures are returned: for tests of what ranks do when one dies."""
    with tempfile.TemporaryDirectory() as folder:
        source = (Path(fn.__code__.co_filename), fn.__qualname__)
        context: Any = mp.get_context("spawn" if fresh else "forkserver")
        if not fresh:
            context.set_forkserver_preload(PRELOADED)
        given = (source, world, folder, dict(os.environ), weighing, args)
        ranks = [
            context.Process(target=_run_rank, args=(rank, *given), daemon=True)
            for rank in range(world)
        ]
        for process in ranks:
            process.start()
        _join(ranks, time.monotonic() + timeout)
        return [_outcome(Path(folder, f"{r}.pt"), process) for r, process in enumerate(ranks)]


def _join(ranks: list[BaseProcess], deadline: float) -> None:
    while any(p.is_alive() for p in ranks) and time.monotonic() < deadline:
        if any(p.exitcode for p in ranks):
            deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
            _wait(ranks, deadline)
            break
        time.sleep(0.02)
    for process in ranks:
        if process.is_alive():
            process.kill()
        process.join()


def _wait(ranks: list[BaseProcess], deadline: float) -> None:
    for process in ranks:
        process.join(max(0.0, deadline - time.monotonic()))


def _outcome(file: Path, process: BaseProcess) -> Outcome:
    if file.exists():
        return Outcome(**torch.load(file, weights_only=False))
    return Outcome(error=f"ended without a result, exit code {process.exitcode}")


def _run_rank(
    rank: int,
    source: tuple[Path, str],
    world: int,
    folder: str,
    environment: dict[str, str],
    weighing: bool,
    args: tuple[Any, ...],
) -> None:
    os.environ.clear()
    os.environ.update(environment, GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    if not weighing:
        act_always()
    outcome: dict[str, Any]
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=world,
            timeout=GROUP_TIMEOUT,
        )
        outcome = {"result": _load(*source)(rank, world, *args)}
    except BaseException:  # reported to the parent, whatever it is
        outcome = {"error": traceback.format_exc()}
    temporary = Path(folder, f"{rank}.tmp")
    torch.save(outcome, temporary)
    temporary.rename(Path(folder, f"{rank}.pt"))
    sys.stdout.flush()
    os._exit(1 if "error" in outcome else 0)  # a group whose peers are gone may hang in its end


def _load(file: Path, qualname: str) -> Any:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return getattr(module, qualname)
