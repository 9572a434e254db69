"""Generated kernels: their text, and the same results from every target."""

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from interpreted import interpreted_lines
from kernel_specs import NAMES, SCALED, copies, numbers, operands, spec
from zc.codegen import cpp_target, source
from zc.codegen.cpp_target import CHUNK_ELEMENTS, load_cpp, render_cpp
from zc.codegen.spec import KernelSpec, Operand, Statement
from zc.codegen.table import TABLE
from zc.codegen.torch_target import load_torch, render_torch
from zc.codegen.triton_target import render_triton

GOLDEN = ["sgd momentum", "adam", "adamw", "nadam", "adamax", "adagrad", "adadelta", "rmsprop",
          "rprop", "sign", "scaled adamw"]  # fmt: skip
# relative; the C++ compiler contracts products and sums, and multiplies by reciprocals of numbers
ULPS = {torch.float32: 4 * 2**-23, torch.bfloat16: 2**-7, torch.float64: 4 * 2**-52}
# of numbers near 1; torch divides by a number as it multiplies by its reciprocal, and Triton's
# interpreter cuts bf16 off where hardware rounds
INTERPRETED = {"torch.float32": 4 * 2**-23, "torch.bfloat16": 2 * 2**-7, "table": 0.0}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZC_CACHE", str(tmp_path))


@pytest.mark.parametrize("name", GOLDEN)
def test_triton(name: str, golden: Callable[..., None]):
    golden(render_triton(spec(name)))


def test_triton_with_a_table_of_numbers(golden: Callable[..., None]):
    golden(render_triton(spec("sgd momentum"), from_table=True))


def test_cpp(golden: Callable[..., None]):
    golden(render_cpp(spec("adamw")))


def test_reference(golden: Callable[..., None]):
    golden(render_torch(spec("adamw")))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["sgd momentum", "adamw", "adadelta", "rprop", "sign", *SCALED])
def test_cpp_is_the_reference(name: str, dtype: torch.dtype):
    kernel = spec(name, dtype)
    ours = operands(kernel)
    theirs = copies(ours)
    load_cpp(kernel)(ours, numbers(kernel))
    load_torch(kernel)(theirs, numbers(kernel))
    for one, other in zip(ours, theirs, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=ULPS[dtype], atol=ULPS[dtype])


def test_threads_share_elements_not_tensors():
    """Every element once, however many threads there are: chunks begin and end with tensors."""
    kernel = spec("adamw", torch.float32)
    sizes = [1, CHUNK_ELEMENTS - 1, CHUNK_ELEMENTS, 0, 3 * CHUNK_ELEMENTS + 5, 7, 2]
    generator = torch.Generator().manual_seed(0)
    first = [
        [torch.rand(size, generator=generator) + 0.5 for size in sizes] for _ in kernel.operands
    ]
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3, 5):
        ours = copies(first)
        torch.set_num_threads(threads)
        try:
            load_cpp(kernel)(ours, numbers(kernel))
        finally:
            torch.set_num_threads(before)
        results.append(torch.cat([t for item in ours for t in item]))
    assert not torch.equal(results[0], torch.cat([t for item in first for t in item]))
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("name", SCALED)
def test_scaled_kernels_have_a_factor_and_a_condition(name: str):
    scalars = [o for o in spec(name).operands if o.scalar]
    assert [(o.name, o.dtype) for o in scalars] == [("factor", "float32"), ("skip", "bool")]


def test_triton_is_the_reference():
    """Ragged tails and empty tensors included; a table of numbers gives the bits of arguments."""
    lines = interpreted_lines("interpret_triton.py")
    rows = [line.rsplit(",", 2) for line in lines]
    assert len(rows) == 2 * len(NAMES) + 3
    for dtype, name, difference in rows:
        assert float(difference) <= INTERPRETED[dtype], (dtype, name)


@pytest.mark.parametrize("from_table", [False, True])
@pytest.mark.parametrize(
    ("backend", "arch", "warp", "vector"),
    [
        ("cuda", 80, 32, "ld.global.v4.b32"),
        ("cuda", 90, 32, "ld.global.v4.b32"),
        ("hip", "gfx942", 64, "global_load_dwordx4"),
    ],
)
def test_triton_compiles_ahead_of_time(
    backend: str, arch: int | str, warp: int, vector: str, from_table: bool
):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from zc.codegen import triton_target

    kernel = spec("adamw")
    function, _ = triton_target._kernel(kernel, from_table)
    signature = {"pointers": "*i64", "sizes": "*i64", "starts": "*i64", "count": "i32"}
    by_name = {n.name: "fp32" for n in kernel.numbers}
    signature |= {"numbers": "*fp64"} if from_table else by_name
    signature |= {"BLOCK": "constexpr"}
    compiled = triton.compile(
        ASTSource(function, signature, {"BLOCK": triton_target.BLOCK}),
        target=GPUTarget(backend, arch, warp),
        options={"enable_fp_fusion": True},
    )
    text = compiled.asm.get("ptx") or compiled.asm["amdgcn"]
    assert len(re.findall(re.escape(vector), text)) >= len(kernel.operands)  # 16 bytes each


@pytest.mark.parametrize(
    ("name", "dtype", "read", "written"),
    [
        ("adamw", torch.float32, 16, 12),
        ("sgd", torch.float32, 8, 4),
        ("sgd momentum", torch.float32, 12, 8),
        ("adamw", torch.bfloat16, 8, 6),
    ],
)
def test_bytes_are_counted_in_the_source(name: str, dtype: torch.dtype, read: int, written: int):
    kernel = spec(name, dtype)
    text = render_triton(kernel)
    size = {"float32": 4, "bfloat16": 2}
    of = {operand.name: size[operand.dtype] for operand in kernel.operands}
    loads = re.findall(r"tl\.load\((\w+)_at", text)
    stores = re.findall(r"tl\.store\((\w+)_at", text)
    assert (sum(of[n] for n in loads), sum(of[n] for n in stores)) == (read, written)
    assert kernel.bytes_per_element() == (read, written)


def test_a_kernel_can_be_edited_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kernel = spec("sgd")
    text = render_cpp(kernel)
    path = source.source_of(kernel, "cpp", text)
    assert path.read_text() == text
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / path.name).write_text(re.sub(r"= param \+ .*;", "= param * real(2);", text))
    monkeypatch.setenv("ZC_OVERRIDE", str(mine))
    param, grad = torch.ones(3), torch.ones(3)
    load_cpp(kernel)([[param], [grad]], numbers(kernel))
    assert param.tolist() == [2.0, 2.0, 2.0]


def test_a_library_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = tmp_path / "kernel.cpp"
    source.touch()
    runs: list[Path] = []

    def slowly(_: Path, library: Path, __: str) -> None:
        runs.append(library)
        time.sleep(0.1)
        library.touch()

    monkeypatch.setattr(cpp_target, "_compile", slowly)
    threads = [threading.Thread(target=cpp_target._library, args=(source, "g++")) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert runs == [source.with_suffix(".so")]


def test_source_that_does_not_compile():
    operand = Operand("x", "float32", reads=True, writes=True)
    statement = Statement("y", "aten.neg", (("0", "no_such_value"),))
    broken = KernelSpec("broken", (operand,), (), (statement,), (("x", "y"),))
    with pytest.raises(RuntimeError, match=r"(?s)g\+\+ .* failed:.*no_such_value"):
        load_cpp(broken)


def test_every_operation_has_text():
    for name, operation in TABLE.items():
        given = {n: f"x{i}" for i, n in enumerate(operation.names)}
        assert all(text in operation.render(given) for text in given.values()), name
