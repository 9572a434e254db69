"""Stochastic rounding: random bits that are known, right on average, the same from every target."""

import math
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreted import interpreted_lines
from kernel_specs import copies
from rounding_kernel import ENTRIES, PLACES, SPECIAL, STEP, operands, spec
from zc.codegen import source
from zc.codegen.cpp_target import load_cpp, render_cpp
from zc.codegen.rounding import Place, random_words, round_stochastic, seed_word
from zc.codegen.torch_target import load_torch, render_torch
from zc.codegen.triton_target import render_triton

DRAWS = 1 << 18
ERRORS = 4.5  # standard errors: one test in 150,000 fails by chance, and seeds are fixed
# counter, key, rounds and both words: the known answers of Random123, kat_vectors
KNOWN = [
    (0x0000000000000000, 0x00000000, 7, (0x257A3673, 0xCD26BE2A)),
    (0xFFFFFFFFFFFFFFFF, 0xFFFFFFFF, 7, (0xAB302C4D, 0x3DC9D239)),
    (0x85A308D3243F6A88, 0x13198A2E, 7, (0xBEDBBE6B, 0xE4C770B3)),
    (0x0000000000000000, 0x00000000, 10, (0xFF1DAE59, 0x6CD10DF2)),
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZC_CACHE", str(tmp_path))


def drawn(value: float, *, step: float = 0.0, seed: int = 0, entry: int = 0) -> torch.Tensor:
    """``value``, rounded as many elements of one tensor."""
    values = torch.full((DRAWS,), value)
    counters = Place(3, DRAWS, DRAWS, 0).counters(values)
    return round_stochastic(values, step, counters, seed_word(seed), entry)


@pytest.mark.parametrize(("counter", "key", "rounds", "words"), KNOWN)
def test_known_answers(counter: int, key: int, rounds: int, words: tuple[int, int]):
    signed = counter - (1 << 64) if counter >> 63 else counter
    low, high = random_words(torch.tensor(signed), key, rounds)
    assert (int(low), int(high)) == words


def test_seeds_are_far_apart():
    words = sorted(seed_word(seed) for seed in range(1000))
    gaps = [b - a for a, b in pairwise(words)]
    assert min(gaps) > 0
    assert seed_word(-1) == seed_word((1 << 63) - 1)


@settings(max_examples=30)
@given(
    st.floats(-(2.0**99), 2.0**99, width=32).filter(lambda x: abs(x) > 2.0**-99),
    st.integers(0, 7),
    st.integers(0, 3),
)
def test_right_on_average(value: float, entry: int, seed: int):
    """The mean of many draws, in standard errors that follow from the distance to both sides."""
    found = drawn(value, entry=entry, seed=seed).double()
    low, high = found.min().item(), found.max().item()
    assert low <= value <= high
    assert len(found.unique()) <= 2
    error = math.sqrt((value - low) * (high - value) / DRAWS)
    slack = (high - low) * 2.0 / DRAWS if low != high else 0.0  # of 2 draws, where error is small
    assert abs(found.mean().item() - value) <= ERRORS * error + slack


@pytest.mark.parametrize(
    "other", [{"step": 1.0}, {"seed": 1}, {"entry": 1}, {"entry": 2}, {"entry": 4}]
)
def test_draws_that_share_nothing(other: dict[str, float]):
    """Halfway between two numbers, draws of another step, seed or entry are uncorrelated."""
    value = 1 + 2**-8
    first, second = drawn(value), drawn(value, **other)  # type: ignore[arg-type]
    signs = torch.sign(first - value) * torch.sign(second - value)
    assert abs(signs.mean().item()) <= ERRORS / math.sqrt(DRAWS)
    assert torch.equal(first, drawn(value))


@pytest.mark.parametrize("distance", [1, 2, 64, 1024])
def test_neighbours_share_nothing(distance: int):
    signs = torch.sign(drawn(1 + 2**-8) - (1 + 2**-8))
    product = (signs[distance:] * signs[:-distance]).mean().item()
    assert abs(product) <= ERRORS / math.sqrt(DRAWS - distance)


def test_numbers_of_bf16_stay():
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
    rounded = round_stochastic(every, 5.0, torch.arange(1 << 16), seed_word(1), 0)
    assert torch.equal(rounded.isnan(), every.isnan())
    assert torch.equal(rounded[~every.isnan()], every[~every.isnan()])


def test_nan_with_low_bits_alone_is_nan():
    bits = torch.tensor([0x7F800001, 0x7FFFFFFF, -1, -0x7FFFFF], dtype=torch.int32)
    rounded = round_stochastic(bits.view(torch.float32), 0.0, torch.arange(4), 0, 0)
    assert rounded.isnan().all()


def test_small_steps_add_up():
    """1e-4 a thousand times: a fortieth of what moves 1.0 in bf16 to nearest."""
    steps, small, count = 1000, 1e-4, 4096
    rounded = torch.ones(count)
    nearest = torch.ones((), dtype=torch.bfloat16)
    counters = Place(0, count, count, 0).counters(rounded)
    for step in range(steps):
        rounded = round_stochastic(rounded + small, float(step), counters, seed_word(0), 0)
        nearest = (nearest.float() + small).to(torch.bfloat16)
    assert nearest.item() == 1.0
    unit = 2.0**-7  # between numbers from 1 to 2; a step is rounded up with chance small / unit
    error = unit * math.sqrt(small / unit * steps / count)
    assert abs(rounded.mean().item() - (1 + steps * small)) <= ERRORS * error


def same(ours: list[list[torch.Tensor]], theirs: list[list[torch.Tensor]]) -> bool:
    pairs = [p for rows in zip(ours, theirs, strict=True) for p in zip(*rows, strict=True)]
    return all(torch.allclose(a, b, 0.0, 0.0, equal_nan=True) for a, b in pairs)


def test_cpp_has_the_bits_of_the_reference():
    ours = operands()
    theirs = copies(ours)
    load_cpp(spec())(ours, [STEP], PLACES)
    load_torch(spec())(theirs, [STEP], PLACES)
    assert same(ours, theirs)
    special = torch.tensor(SPECIAL)
    kept = ours[0][-1][: len(SPECIAL)].float()
    assert torch.equal(kept[:4], special[:4])
    assert kept[4].isnan()
    assert not same(ours, operands())


def test_triton_has_the_bits_of_the_reference():
    lines = interpreted_lines("interpret_rounding.py")
    rows = [tuple(map(int, line.split())) for line in lines]
    assert [differ for differ, _ in rows] == [0] * (ENTRIES + 1)
    assert all(moved > 1000 for _, moved in rows[:-1])


def test_parts_have_the_bits_of_the_whole():
    """Columns of a matrix on three ranks, in C++ and in the reference."""
    whole = operands()
    parts = [[t[-1][:39_000].view(100, 390) for t in whole]] * 3
    cut = [[t.chunk(3, dim=1)[r].contiguous() for t in parts[r]] for r in range(3)]
    together = [[t[-1][:39_000].clone()] for t in whole]
    for load in (load_cpp, load_torch):
        pieces = [[t.clone()] for t in cut[1]]
        one = copies(together)
        load(spec())(one, [STEP], [Place(0, 39_000, 39_000, 0)])
        load(spec())(pieces, [STEP], [Place(0, 130, 390, 130)])
        middle = [[t[0].view(100, 390).chunk(3, dim=1)[1].contiguous()] for t in one]
        assert same(pieces, middle)


@pytest.mark.parametrize(("backend", "arch", "warp"), [("cuda", 80, 32), ("cuda", 90, 32),
                                                       ("hip", "gfx942", 64)])  # fmt: skip
def test_triton_compiles_ahead_of_time(backend: str, arch: int | str, warp: int):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from zc.codegen import triton_target

    path = source.source_of(spec(), "triton", render_triton(spec()))
    function = triton_target._module(path).rounding_kernel
    signature = {"pointers": "*i64", "sizes": "*i64", "starts": "*i64", "places": "*i64"}
    signature |= {"count": "i32", "c0": "fp32", "BLOCK": "constexpr"}
    compiled = triton.compile(
        ASTSource(function, signature, {"BLOCK": triton_target.BLOCK}),
        target=GPUTarget(backend, arch, warp),
        options={"enable_fp_fusion": True},
    )
    text = compiled.asm.get("ptx") or compiled.asm["amdgcn"]
    assert re.search(r"mul\.wide\.u32|mul\.hi\.u32|v_mul_hi_u32|v_mad_u64_u32", text)


@pytest.mark.parametrize("render", [render_triton, render_cpp, render_torch])
def test_source(render: Callable[..., str], golden: Callable[..., None]):
    golden(render(spec()))
