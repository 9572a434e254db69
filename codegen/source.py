"""Where rendered source lies: one file for each content, so that tracebacks and profilers show it.

A file of the same name in the folder ``ZC_OVERRIDE`` is taken instead: copy a kernel there, edit
it, and run again.
"""

import hashlib
import os
import tempfile
from pathlib import Path

from zc.codegen.spec import KernelSpec

_SUFFIXES = {"cpp": ".cpp", "triton": ".py"}


def cache_folder() -> Path:
    """``ZC_CACHE``, or ``zc`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ZC_CACHE") or Path(base, "zc"))


def source_of(spec: KernelSpec, target: str, text: str) -> Path:
    """The file that holds ``text``, written where it is not there; or the one that overrides it."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    name = f"{spec.name}_{digest}{_SUFFIXES[target]}"
    override = os.environ.get("ZC_OVERRIDE")
    if override and Path(override, name).exists():
        return Path(override, name)
    folder = cache_folder() / "kernels"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if not path.exists():
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:
            file.write(text)
        Path(file.name).replace(path)  # at once: another process may look meanwhile
    return path
