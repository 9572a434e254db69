"""Compiling regions with Inductor: each once on a host, whoever comes first, and kept on disk.

    file there              load it: no lowering, no compiler
    its lock is free        compile, write the file
    somebody holds it       look at the next region, come back

Ranks need the same regions, so each takes what no other rank is at, and n ranks compile on n cores.
The largest regions go first, lest one that takes long is begun last. Waiting is bounded.
"""

import hashlib
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx

from zc import torch_private
from zc.clock import attribute, spending
from zc.codegen.host_lock import LOCK_SECONDS, POLL_SECONDS, locked
from zc.errors import ExecutionError
from zc.program.nodes import value_of
from zc.run.expanded import with_views
from zc.run.region_files import inode, read_region, region_folder, write_region
from zc.run.regions import Region, extract, is_symbolic, structure_key

Compiled = Callable[..., Any]
VERSION = "2"  # of how regions are compiled: another one finds none of the old files
_TORCH = ("aten", "prims")
_compiled: dict[str, Compiled] = {}
_new: set[str] = set()  # keys of what this process has compiled itself
_warned = False


def usable_executor(wanted: str) -> str:
    """``wanted``, or ``interpret`` (said once) where Inductor has no C++ compiler."""
    return wanted if wanted != "inductor" or can_compile() else "interpret"


def can_compile() -> bool:
    """Whether there is a C++ compiler; where there is none, that is said once."""
    global _warned
    found = torch_private.has_cpp_compiler()
    if not found and not _warned:
        _warned = True
        warnings.warn(
            "no C++ compiler found: zc runs programs node by node (executor: interpret); install "
            "g++ or clang++ for compiled regions",
            stacklevel=2,
        )
    return found


def compile_regions(regions: Sequence[Region]) -> list[Compiled]:
    """The compiled functions of ``regions``, shared by those of the same structure.

    Compiling symbolic sizes may set conditions on them that the program's guards must learn, so
    those go through Inductor each time; its cache remembers the conditions.
    """
    with spending("regions named"):
        jobs = [_Job(extract(region), is_symbolic(region)) for region in regions]
        _place(jobs)
    shared = {job.key: job for job in jobs if not job.symbolic and job.key not in _compiled}
    for group in ([*shared.values()], *([job] for job in jobs if job.symbolic)):
        _finish(group)
    functions = [job.function or _compiled[job.key] for job in jobs]
    pairs = zip(functions, regions, strict=True)
    return [with_views(function, r.outputs, r.inputs) for function, r in pairs]


def compile_region(region: Region) -> Compiled:
    """The compiled function of one region."""
    (found,) = compile_regions([region])
    return found


def compiled_regions() -> dict[str, bool]:
    """Distinct regions of this process, by structure: whether it had to compile them.

    Those that it did not compile came from disk, out of zc's files or out of Inductor's cache.
    """
    return {key: key in _new for key in _compiled}


@dataclass
class _Job:
    """A region on its way; ``path`` is its file, whether or not anything may be kept there."""

    module: fx.GraphModule
    symbolic: bool
    key: str = ""
    path: Path = Path()
    kept: bool = False
    function: Compiled | None = None
    refused: int = 0  # the file that was read and is of no use, by its inode

    def __post_init__(self) -> None:
        self.key = structure_key(self.module)

    @property
    def examples(self) -> list[Any]:
        """Types of the inputs."""
        return [value_of(n) for n in self.module.graph.find_nodes(op="placeholder")]

    def load(self) -> bool:
        """Take what another process, or an earlier one, has compiled; says whether there was."""
        number = inode(self.path) if self.kept else 0
        if number in (0, self.refused):
            return False
        try:
            data = read_region(self.path)
            with spending("regions loaded"):
                self.function = torch_private.load_region(data, self.examples)
        except Exception as error:  # a record of other code may raise anything
            self.refused = number
            _say_unusable(self.path, error)
        return self.function is not None

    def compile(self) -> None:
        """Run Inductor, and leave the outcome to others."""
        with spending("Inductor"):
            before = torch_private.kernel_seconds()
            misses = torch_private.inductor_counts()["misses"]
            self.function = torch_private.compile_region(self.module, self.examples)
            attribute("kernels of regions", torch_private.kernel_seconds() - before)
        if torch_private.inductor_counts()["misses"] > misses:
            _new.add(self.key)
        data = torch_private.region_bytes(self.function) if self.kept else None
        if data is not None:
            write_region(self.path, data)


def _place(jobs: Sequence[_Job]) -> None:
    """Give each job its file, whose name says what compiled code depends on."""
    if not jobs:
        return
    fingerprint = torch_private.compiler_fingerprint([x for job in jobs for x in job.examples])
    folder = region_folder()
    for job in jobs:
        content = f"{VERSION} {fingerprint} {job.key}"
        job.path = folder / hashlib.sha256(content.encode()).hexdigest()
        job.kept = fingerprint is not None and not job.symbolic and _is_known(job.module)


def _is_known(module: fx.GraphModule) -> bool:
    """Whether only torch decides what the ops of ``module`` consist of; others' may change."""
    targets = [n.target for n in module.graph.nodes if n.op == "call_function"]
    ops = [t for t in targets if isinstance(t, torch._ops.OpOverload)]
    return all(op.namespace in _TORCH or not torch_private.is_composite(op.name()) for op in ops)


def _say_unusable(path: Path, error: Exception) -> None:
    reason = str(error) if isinstance(error, ExecutionError) else f"{type(error).__name__}: {error}"
    warnings.warn(f"{path} is not used: {reason}; compiling its region again", stacklevel=2)


def _finish(jobs: Sequence[_Job]) -> None:
    """Load or compile every job, those first that nobody is at; the longest of them first."""
    waiting = sorted(jobs, key=lambda job: -len(job.module.graph.nodes))
    deadline = time.monotonic() + LOCK_SECONDS
    while waiting:
        left = [job for job in waiting if not _try(job, wait=time.monotonic() < deadline)]
        if len(left) < len(waiting):
            deadline = time.monotonic() + LOCK_SECONDS
        else:
            with spending("waiting for other processes"):
                time.sleep(POLL_SECONDS)
        waiting = left


def _try(job: _Job, *, wait: bool) -> bool:
    """Load ``job``, or compile it unless somebody else does; not for ever, so ``wait`` says."""
    if not job.load():
        with locked(job.path.with_suffix(".lock"), seconds=0) as mine:
            if wait and not mine:
                return False
            if not job.load():  # the last holder may have written it
                job.compile()
    assert job.function is not None
    _compiled[job.key] = job.function
    return True
