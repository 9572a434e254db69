"""The end of a process waits for gloo's workers; each test names the versions it was tried on."""

import ctypes
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist

from zc.torch_private import gloo_threads


def test_workers_have_the_name_that_is_looked_for(tmp_path: Path):
    """Tried on 2.13."""
    where = f"file://{tmp_path}/store"
    dist.init_process_group("gloo", init_method=where, rank=0, world_size=1)
    try:
        dist.all_reduce(torch.ones(2))
        names = {t.read_text().strip() for t in Path("/proc/self/task").glob("*/comm")}
        assert gloo_threads.WORKER in names
    finally:
        dist.destroy_process_group()


def test_waits_for_a_worker_that_runs_and_no_longer():
    ends = time.monotonic() + 0.3

    def work() -> None:
        ctypes.CDLL(None).prctl(15, gloo_threads.WORKER.encode(), 0, 0, 0)  # PR_SET_NAME
        started.set()
        while time.monotonic() < ends:
            sum(range(1000))

    started = threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    started.wait(10)
    gloo_threads.let_gloo_finish()
    assert ends <= time.monotonic() < ends + 1
    thread.join()


def test_waits_before_the_end_of_a_process_that_has_used_a_group(tmp_path: Path):
    """Tried on 2.13."""
    code = (
        "import torch.distributed as dist\n"
        "from zc.comm.groups import group_of\n"
        "from zc.torch_private import gloo_threads\n"
        f"dist.init_process_group('gloo', init_method='file://{tmp_path}/store', rank=0, "
        "world_size=1)\n"
        "group_of('dp'), group_of('dp')\n"
        "gloo_threads.time.sleep = lambda seconds: print('waited', seconds)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["waited", "0.005"] * 2, done.stderr
