"""Kernels on operands in 8 bits: their text, and the same results from every target."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from block_specs import NAMES, block_operands, block_spec, differences
from interpreted import interpreted_lines
from kernel_specs import copies, numbers
from zc.codegen import triton_target
from zc.codegen.cpp_target import load_cpp, render_cpp
from zc.codegen.source import source_of
from zc.codegen.torch_target import load_torch, render_torch
from zc.codegen.triton_target import render_triton

# of numbers near 1, as in test_targets; and of codes the share that may be the one beside: an
# element half-way between two numbers of the map goes to either, as its last bits fall
ROUNDING, BESIDE = 4 * 2**-23, 1e-3


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZC_CACHE", str(tmp_path))


@pytest.mark.parametrize("render", [render_triton, render_cpp, render_torch])
def test_source(render: Callable[..., str], golden: Callable[..., None]):
    golden(render(block_spec("adamw")))


@pytest.mark.parametrize("name", NAMES)
def test_cpp_is_the_reference(name: str):
    kernel = block_spec(name)
    ours = block_operands(kernel)
    theirs = copies(ours)
    load_cpp(kernel)(ours, numbers(kernel))
    load_torch(kernel)(theirs, numbers(kernel))
    worst, furthest, share = differences(kernel, ours, theirs)
    assert worst <= ROUNDING
    assert furthest <= 1
    assert share <= BESIDE


def test_triton_is_the_reference():
    lines = interpreted_lines("interpret_blocks.py")
    rows = [line.split(",") for line in lines]
    assert [name for name, *_ in rows] == NAMES
    for name, worst, furthest, share in rows:
        assert float(worst) <= ROUNDING, name
        assert float(furthest) <= 1, name
        assert float(share) <= BESIDE, name


@pytest.mark.parametrize(
    ("backend", "arch", "warp", "load"),
    [
        ("cuda", 80, 32, "ld.global.b64"),  # 8 codes
        ("cuda", 90, 32, "ld.global.b64"),
        ("hip", "gfx942", 64, "global_load_dword"),  # 4 codes
    ],
)
def test_triton_compiles_ahead_of_time(backend: str, arch: int | str, warp: int, load: str):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = block_spec("adamw")
    path = source_of(kernel, "triton", render_triton(kernel))
    function = getattr(triton_target._module(path), f"{kernel.name}_kernel")
    signature = {"pointers": "*i64", "sizes": "*i64", "starts": "*i64", "count": "i32"}
    signature |= {n.name: "fp32" for n in kernel.numbers} | {"BLOCK": "constexpr"}
    compiled = triton.compile(
        ASTSource(function, signature, {"BLOCK": triton_target.BLOCK}),
        target=GPUTarget(backend, arch, warp),
        options={"enable_fp_fusion": True},
    )
    text = compiled.asm.get("ptx") or compiled.asm["amdgcn"]
    assert len(re.findall(rf"{re.escape(load)}\s", text)) >= len(kernel.codes)


def test_bytes_are_counted_in_the_source():
    kernel = block_spec("adamw")
    text = render_triton(kernel)
    size = {operand.name: operand.bytes for operand in kernel.operands}
    loads = re.findall(r"tl\.load\((\w+)_at", text)
    stores = re.findall(r"tl\.store\((\w+)_at", text)
    scales = 2 * 4 / 256
    assert (sum(size[n] for n in loads), sum(size[n] for n in stores)) == (10 + scales, 6 + scales)


@pytest.mark.parametrize("special", [float("inf"), float("nan"), 0.0, 1e-42])
def test_blocks_of_special_numbers(special: float):
    """A gradient that is not finite reaches the whole block; zeros and less than normal stay 0."""
    kernel = block_spec("sgd momentum")
    names = [operand.name for operand in kernel.operands]
    found = []
    for load in (load_cpp, load_torch):
        tensors = block_operands(kernel)
        for name, values in zip(names, tensors, strict=True):
            for value in values:
                value.fill_(special if name == "grad" else 127 if value.dtype.itemsize == 1 else 0)
        load(kernel)(tensors, numbers(kernel))
        found.append(tensors)
    scales = names.index("momentum_buffer_scales")
    for one, other in zip(found[0][scales], found[1][scales], strict=True):
        assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))
