"""Threads of gloo's process groups, when the interpreter ends.

A worker of ``ProcessGroupGloo`` that is the last to hold a finished work lets go of its tensors,
and takes the GIL for those that Python knows. Python ends a thread that asks for the GIL while the
interpreter is being finalized; unwound through a destructor of C++, that ends the process:
"terminate called without an active exception", exit status -6, after a run in which all went well.
``destroy_process_group`` does not stop the workers where torch itself still holds the group, as it
does after one functional collective. So the main thread sleeps until they sleep.
"""

import atexit
import time
from functools import cache
from pathlib import Path

WORKER = "pt_gloo_runloop"
LONGEST = 2.0  # s
PAUSE = 0.005  # s; the default time after which a thread that wants the GIL is given it


@cache
def let_gloo_finish_at_exit() -> None:
    """Have the interpreter wait for gloo's workers before it ends; registered once."""
    atexit.register(let_gloo_finish)


def let_gloo_finish() -> None:
    """Sleep, without the GIL, until no worker runs, for two seconds at most.

    Without ``/proc`` (elsewhere than on Linux) it cannot be seen whether they run: one pause.
    """
    end, quiet = time.monotonic() + LONGEST, 0
    while quiet < 2 and time.monotonic() < end:
        time.sleep(PAUSE)  # who waits for the GIL looks asleep until it is free
        quiet = 0 if _a_worker_runs() else quiet + 1


def _a_worker_runs() -> bool:
    for thread in Path("/proc/self/task").glob("*/stat"):
        try:
            _, _, rest = thread.read_text().partition("(")
        except OSError:  # it has just ended
            continue
        name, _, fields = rest.rpartition(")")
        if name == WORKER and fields.split()[0] == "R":
            return True
    return False
