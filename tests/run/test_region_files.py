"""Compiled regions on disk: what is loaded, what is kept, and what damaged files do."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor
from run.programs import layered, random_values, run
from run.region_runs import TWO, compiling, files, start_again
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import zc.run.compile
from zc import torch_private
from zc.errors import ExecutionError
from zc.run.compile import compile_region, compiled_regions
from zc.run.region_files import FORMAT, inode, read_region, region_folder, write_region
from zc.run.regions import Region, extract, split_regions, structure_key

pytestmark = pytest.mark.usefixtures("own_folder")


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


def test_what_came_from_disk_is_told_from_what_was_compiled(monkeypatch: pytest.MonkeyPatch):
    with FakeTensorMode(shape_env=ShapeEnv()):  # without symbols, Inductor's cache is not used
        graph = make_fx(lambda x: x.sin() + 1)(torch.empty(2, 3)).graph
    (region,) = split_regions(graph)
    assert isinstance(region, Region)
    key = structure_key(extract(region))
    compile_region(region)
    assert compiled_regions() == {key: True}
    start_again(monkeypatch)
    compile_region(region)
    assert compiled_regions() == {key: False}  # out of zc's file
    for path in files():
        path.unlink()
    start_again(monkeypatch)
    compile_region(region)
    assert compiled_regions() == {key: False}  # out of Inductor's cache


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
