"""One process of this host at a time: locks that the kernel frees when their holder ends.

What they guard is written at once and may be written twice, so to go on without a lock costs time
and harms nothing. A folder that takes no lock files, and a file system without locks, let everybody
in.
"""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOCK_SECONDS = 600.0  # for how long one process waits for another
POLL_SECONDS = 0.02


@contextmanager
def locked(path: Path, seconds: float | None = None) -> Iterator[bool]:
    """Hold the lock of the file ``path``; says whether it is held.

    Somebody who has it is waited for ``seconds`` at most, ``LOCK_SECONDS`` by default.
    """
    deadline = time.monotonic() + (LOCK_SECONDS if seconds is None else seconds)
    try:
        file = open(path, "w")  # noqa: SIM115
    except OSError:
        yield True
        return
    with file:  # closing it frees the lock
        held = _take(file)
        while not held and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            held = _take(file)
        yield held


def _take(file: Any) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
