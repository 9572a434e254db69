"""One process of this host at a time: locks that the kernel frees when their holder ends.

What they guard is written at once and may be written twice, so to go on without a lock costs time
and harms nothing. A folder that takes no lock files, and a file system without locks, let everybody
in. Whoever has held a lock removes its file, so one who opened that file meanwhile tries again.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

LOCK_SECONDS = 600.0  # for how long one process waits for another
POLL_SECONDS = 0.02


@contextmanager
def locked(path: Path, seconds: float | None = None) -> Iterator[bool]:
    """Hold the lock of the file ``path``, which is removed afterwards; says whether it is held.

    Somebody who has it is waited for ``seconds`` at most, ``LOCK_SECONDS`` by default.
    """
    deadline = time.monotonic() + (LOCK_SECONDS if seconds is None else seconds)
    try:
        file = _take(path)
        while file is None and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            file = _take(path)
    except OSError:
        yield True
        return
    if file is None:
        yield False
        return
    with file:  # closing it frees the lock
        try:
            yield True
        finally:
            with suppress(OSError):
                path.unlink()


def _take(path: Path) -> IO[str] | None:
    """The file ``path``, locked; ``None`` where somebody has it, or has just removed it."""
    file = open(path, "w")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:  # no locks here
        return file
    if _is_at(path, file):
        return file
    file.close()
    return None


def _is_at(path: Path, file: IO[str]) -> bool:
    """Whether ``path`` still means ``file``: else another process may lock what it means now."""
    with suppress(OSError):
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    return False
