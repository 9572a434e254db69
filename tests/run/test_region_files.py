"""Compiled regions on disk: who compiles, what is loaded, and what damaged files do."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor
from multiprocess import run_ranks
from run.programs import layered, random_values, run
from zc.codegen import host_lock
from zc.codegen.host_lock import locked

import zc.run.compile
from zc import torch_private
from zc.errors import ExecutionError
from zc.run.region_files import FORMAT, inode, read_region, region_folder, write_region
from zc.run.regions import Region, extract, free_of_work, split_regions, structure_key

TWO = {"w0": (16, 16), "w1": (16, 16)}
WRAPPER = """#!/bin/sh
echo "$@" >> {log}
exec {compiler} "$@"
"""


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setattr(zc.run.compile, "_compiled", {})
    with inductor.patch({"cpp.vec_isa_ok": True}):  # spares four trials of the compiler
        yield


def files() -> list[Path]:
    return [path for path in region_folder().iterdir() if not path.suffix]


def compiling(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows with every region that is compiled and not loaded."""
    calls: list[Any] = []
    compile_region = torch_private.compile_region
    monkeypatch.setattr(
        torch_private, "compile_region", lambda *a: calls.append(a) or compile_region(*a)
    )
    return calls


def start_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process has compiled is forgotten."""
    monkeypatch.setattr(zc.run.compile, "_compiled", {})


def test_what_is_loaded_computes_the_same(monkeypatch: pytest.MonkeyPatch):
    program = layered(TWO)
    values = random_values(program)
    compiled = run(program, "inductor", values)
    start_again(monkeypatch)
    calls = compiling(monkeypatch)
    loaded = run(program, "inductor", values)
    assert calls == []
    assert all(torch.equal(a, b) for a, b in zip(compiled, loaded, strict=True))
    assert [a.stride() for a in compiled] == [b.stride() for b in loaded]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def of_another_version(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(FORMAT, b"zc-region 0", 1))


def of_other_code(path: Path) -> None:
    write_region(path, b"not a pickle")


DAMAGED = "it is damaged, or of another version"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, DAMAGED),
        (empty, DAMAGED),
        (of_another_version, DAMAGED),
        (of_other_code, r"UnpicklingError: .*"),
    ],
)
def test_a_damaged_file_is_said_and_written_anew(
    damage: Callable[[Path], None], reason: str, monkeypatch: pytest.MonkeyPatch
):
    program = layered({"w": (16, 16)})
    values = random_values(program)
    expected = run(program, "inductor", values)
    (path,) = files()
    damage(path)
    start_again(monkeypatch)
    calls = compiling(monkeypatch)
    message = f"^{re.escape(str(path))} is not used: {reason}; compiling its region again$"
    with pytest.warns(UserWarning, match=message):
        found = run(program, "inductor", values)
    assert len(calls) == 1
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    start_again(monkeypatch)
    run(program, "inductor", values)
    assert len(calls) == 1  # the file is whole again


def test_a_kernel_that_is_gone_is_compiled_again(monkeypatch: pytest.MonkeyPatch):
    program = layered({"w": (16, 40)})  # as in no other test: this process keeps kernels it loads
    values = random_values(program)
    expected = run(program, "inductor", values)
    for kernel in torch_private.inductor_folder().rglob("*.so"):
        kernel.unlink()
    start_again(monkeypatch)
    with pytest.warns(UserWarning, match=r"is not used: its kernel \S+\.so is gone; comp"):
        found = run(program, "inductor", values)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_reading(tmp_path: Path):
    with pytest.raises(ExecutionError) as error:
        read_region(tmp_path)
    assert str(error.value) == "it cannot be read: Is a directory"
    assert inode(tmp_path / "nothing") == 0


def test_a_folder_that_takes_no_files(tmp_path: Path):
    path = tmp_path / "gone" / "region"
    said = f"^{re.escape(str(path))} cannot be written: No such file or directory$"
    with pytest.warns(UserWarning, match=said):
        write_region(path, b"")


def test_regions_are_private():
    assert region_folder().stat().st_mode & 0o077 == 0


def test_settings_of_inductor_tell_files_apart(monkeypatch: pytest.MonkeyPatch):
    program = layered({"w": (16, 16)})
    run(program, "inductor", random_values(program))
    start_again(monkeypatch)
    with inductor.patch(epilogue_fusion=False):
        run(program, "inductor", random_values(program))
    assert len(files()) == 2


def test_without_caches_nothing_is_kept():
    program = layered({"w": (16, 16)})
    with inductor.patch(force_disable_caches=True):
        run(program, "inductor", random_values(program))
    assert files() == []


@torch.library.custom_op("zc_test::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@twice.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def composite() -> Any:
    library = torch.library.Library("zc_test", "FRAGMENT")
    library.define("thrice(Tensor x) -> Tensor")
    library.impl("thrice", lambda x: x * 3, "CompositeImplicitAutograd")
    return library


def test_ops_that_others_take_apart_are_not_kept():
    library = composite()
    with torch_private.fake_mode_of([]):
        x = torch.empty(4)
    for op, known in [(torch.ops.zc_test.twice, True), (torch.ops.zc_test.thrice, False)]:
        graph = torch.fx.Graph()
        node = graph.call_function(op.default, (graph.placeholder("x"),))
        graph.output((node,))
        node.meta["val"] = x
        assert zc.run.compile._is_known(torch.fx.GraphModule({}, graph)) is known
    del library


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


def test_a_writer_that_is_killed_leaves_nothing_that_counts(monkeypatch: pytest.MonkeyPatch):
    """What it was writing has another name; its lock is free."""
    program = layered({"w": (16, 16)})
    values = random_values(program)
    run(program, "inductor", values)
    (path,) = files()
    path.rename(path.with_name("tmp-left"))
    start_again(monkeypatch)
    calls = compiling(monkeypatch)
    run(program, "inductor", values)
    assert len(calls) == 1
    assert path in files()


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
