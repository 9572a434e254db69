"""Compiling regions with Inductor: once per structure, and by one rank at a time.

Results live in Inductor's own cache on disk, keyed by content, so a second start loads them. A
lock file per region keeps ranks from compiling the same one together; waiting for it is bounded.
"""

import fcntl
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zc import torch_private
from zc.program.nodes import value_of
from zc.run.regions import Region, extract, is_symbolic, structure_key

LOCK_SECONDS = 600.0
_compiled: dict[str, Callable[..., Any]] = {}
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


def compile_region(region: Region) -> Callable[..., Any]:
    """The compiled function of ``region``, shared with every region of the same structure.

    Compiling symbolic sizes may set conditions on them that the program's guards must learn, so
    those go through Inductor each time; its cache remembers the conditions.
    """
    module = extract(region)
    key = structure_key(module)
    if key not in _compiled or is_symbolic(region):
        examples = [value_of(n) for n in module.graph.find_nodes(op="placeholder")]
        with _locked(key):
            _compiled[key] = torch_private.compile_region(module, examples)
    return _compiled[key]


def compiled_count() -> int:
    """Distinct regions compiled or loaded in this process."""
    return len(_compiled)


@contextmanager
def _locked(key: str) -> Iterator[None]:
    folder = Path(tempfile.gettempdir()) / f"zc-locks-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    with open(folder / key, "w") as file:
        held = _acquire(file)
        try:
            yield
        finally:
            if held:
                fcntl.flock(file, fcntl.LOCK_UN)


def _acquire(file: Any) -> bool:
    """Take the lock; after ``LOCK_SECONDS`` go on without it, which is only slower."""
    deadline = time.monotonic() + LOCK_SECONDS
    while time.monotonic() < deadline:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.05)
    return False
