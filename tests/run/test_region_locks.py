"""Compiled regions on disk: who compiles, who waits, and what ends the wait."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch._inductor.config as inductor
from multiprocess import run_ranks
from run.programs import layered, random_values, run
from run.region_runs import TWO, files, start_again
from zc.codegen import host_lock
from zc.codegen.host_lock import locked

import zc.run.compile
from zc import torch_private
from zc.run.region_files import region_folder
from zc.run.regions import Region, extract, free_of_work, split_regions, structure_key

WRAPPER = """#!/bin/sh
echo "$@" >> {log}
exec {compiler} "$@"
"""
pytestmark = pytest.mark.usefixtures("own_folder")


def build(rank: int, world: int, log: str) -> tuple[set[str], dict[str, int]]:
    """Compile on one rank, and say so in ``log``; what is needed, and the counts of Inductor."""
    inductor.cpp.vec_isa_ok = True
    compile_region = torch_private.compile_region

    def logged(module: Any, examples: Any) -> Any:
        with open(log, "a") as file:
            file.write(structure_key(module) + "\n")
        return compile_region(module, examples)

    torch_private.compile_region = logged  # type: ignore[assignment]  # in a process of its own
    program = layered(TWO, world)
    run(program, "inductor", random_values(program))
    parts = [p for p in split_regions(program.graph) if isinstance(p, Region)]
    keys = {structure_key(extract(p)) for p in parts if not free_of_work(p)}
    return keys, torch_private.inductor_counts()


def test_ranks_compile_each_region_once(tmp_path: Path):
    log = tmp_path / "log"
    log.touch()
    (keys, _), (others, _) = run_ranks(build, 2, str(log), timeout=200)
    assert keys == others
    assert len(keys) > 2
    assert sorted(log.read_text().split()) == sorted(keys)
    assert not list(region_folder().glob("*.lock"))


def test_a_second_start_compiles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    log, compiler = tmp_path / "log", tmp_path / "bin" / "g++"
    compiler.parent.mkdir()
    compiler.write_text(WRAPPER.format(log=tmp_path / "g++.log", compiler=shutil.which("g++")))
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{compiler.parent}:{os.environ['PATH']}")
    log.touch()
    run_ranks(build, 1, str(log), timeout=200)
    first = (log.read_text(), compiler_runs(tmp_path))
    assert first[1]
    ((_, counts),) = run_ranks(build, 1, str(log), timeout=200)
    assert (log.read_text(), compiler_runs(tmp_path)) == first
    assert counts == {"hits": 0, "misses": 0}


def compiler_runs(folder: Path) -> list[str]:
    """Runs of the compiler, other than for its version."""
    lines = (folder / "g++.log").read_text().splitlines()
    return [line for line in lines if "-o" in line or "-E" in line]


HOLDER = """
import sys, time
from pathlib import Path
from zc.codegen.host_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(300)
"""


def test_a_holder_that_is_killed_blocks_nobody(tmp_path: Path):
    path = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with locked(path, seconds=0) as held:
        assert not held
    holder.send_signal(signal.SIGKILL)
    holder.wait(timeout=30)
    holder.stdout.close()
    with locked(path, seconds=30) as held:
        assert held
    assert not path.exists()


COUNTER = """
import sys
from pathlib import Path
from zc.codegen import host_lock
host_lock.POLL_SECONDS = 0
lock, count = Path(sys.argv[1]), Path(sys.argv[2])
for _ in range(300):
    with host_lock.locked(lock) as held:
        assert held
        count.write_text(str(int(count.read_text()) + 1))
"""


def test_processes_take_turns_and_leave_no_lock(tmp_path: Path):
    lock, count = tmp_path / "lock", tmp_path / "count"
    count.write_text("0")
    command = [sys.executable, "-c", COUNTER, str(lock), str(count)]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(timeout=100) for process in processes] == [0, 0]
    assert count.read_text() == "600"
    assert not lock.exists()


def test_a_lock_removed_while_it_is_taken_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, take = tmp_path / "lock", fcntl.flock

    def removed_before(*args: Any) -> None:
        path.unlink()
        take(*args)
        monkeypatch.setattr(fcntl, "flock", take)

    monkeypatch.setattr(fcntl, "flock", removed_before)
    with locked(path, seconds=0) as held:
        assert not held
    monkeypatch.setattr(fcntl, "flock", removed_before)
    with locked(path, seconds=30) as held, locked(path, seconds=0) as other:
        assert (held, other) == (True, False)


def test_waiting_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(host_lock, "LOCK_SECONDS", 0.1)
    monkeypatch.setattr(zc.run.compile, "LOCK_SECONDS", 0.1)
    path = tmp_path / "lock"
    program = layered({"w": (16, 16)})
    values = random_values(program)
    run(program, "inductor", values)
    (region,) = files()
    region.unlink()
    start_again(monkeypatch)
    start = time.monotonic()
    with locked(path), locked(path) as held:
        assert not held
    with locked(region.with_suffix(".lock")):
        run(program, "inductor", values)  # somebody else is at it, for too long
    assert time.monotonic() - start < 60
    assert region.exists()


def test_a_folder_without_locks_lets_everybody_in(tmp_path: Path):
    with locked(tmp_path / "gone" / "lock") as held:
        assert held
