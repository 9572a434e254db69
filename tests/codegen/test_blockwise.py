"""Numbers in 8 bits: the maps, the bound, and what quantising twice leaves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from zc.codegen.blockwise import BLOCKS, block_count, dequantize, quantize
from zc.codegen.dynamic_map import (
    EDGE,
    last_threshold,
    magnitude_lines,
    magnitudes,
    max_error,
    numbers,
    place_lines,
    thresholds,
)

SIGNS = pytest.mark.parametrize("signed", [True, False])
ULP = 2**-23  # relative; a quotient and a product are rounded


def values(sizes: tuple[int, ...], signed: bool, seed: int) -> torch.Tensor:
    """Numbers of many magnitudes, outliers among them."""
    torch.manual_seed(seed)
    found = torch.randn(sizes) * 10 ** (4 * torch.randn(sizes))
    return found if signed else found.abs()


@SIGNS
def test_a_map_has_256_numbers(signed: bool):
    found = numbers(signed)
    assert len(found) == 256
    assert sorted(set(found)) == found
    ends = (-0.99296875, 0, 1) if signed else (0, 0.103515625, 1)
    assert [found[0], found[127], found[255]] == pytest.approx(ends)


def test_the_promised_error():
    assert max_error(signed=True) < 0.00704
    assert max_error(signed=False) < 0.00352


@SIGNS
@settings(max_examples=20, deadline=None)
@given(
    shape=st.sampled_from([(), (0,), (1,), (255,), (257,), (7, 300)]),
    block=st.sampled_from(BLOCKS),
    seed=st.integers(0, 99),
)
def test_the_error_is_bounded(signed: bool, shape: tuple[int, ...], block: int, seed: int):
    value = values(shape, signed, seed)
    codes, scales = quantize(value, block, signed)
    assert (codes.shape, codes.dtype) == (value.shape, torch.uint8)
    assert scales.shape == (block_count(value.numel(), block),)
    found = dequantize(codes, scales, block, signed)
    largest = scales.abs().repeat_interleave(block)[: value.numel()].view(shape)
    assert bool(((found - value).abs() <= largest * (max_error(signed) + 2 * ULP)).all())
    again = quantize(found, block, signed)
    assert torch.equal(again[0], codes)
    assert torch.equal(again[1], scales)


@SIGNS
def test_the_nearest_number_is_taken(signed: bool):
    value = values((4096,), signed, 0)
    codes, scales = quantize(value, 256, signed)
    quotient = (value.view(-1, 256).double() / scales.double()[:, None]).view(-1)
    found = torch.tensor(numbers(signed), dtype=torch.float64)
    distances = (quotient[:, None] - found).abs()
    taken = distances.gather(1, codes.long()[:, None])[:, 0]
    assert bool((taken <= distances.amin(1) + 2 * ULP).all())


@SIGNS
def test_lines_give_the_place_of_the_nearest_magnitude(signed: bool):
    torch.manual_seed(0)
    x = torch.rand(200000, dtype=torch.float64) * torch.logspace(-8, 0, 200000).double()
    lines = torch.tensor(place_lines(signed), dtype=torch.float64)
    at = (x[:, None] * lines[:, 0] + lines[:, 1]).amin(1)
    place = at.int()
    begins = (place & (place - 1 if signed else place + 1)) == 0
    place = place - (begins & (at - place < EDGE)).int() + (x >= last_threshold(signed)).int()
    limits = torch.tensor(thresholds(signed), dtype=torch.float64)
    assert torch.equal(place, torch.bucketize(x, limits, right=True).int())


@SIGNS
def test_lines_give_the_magnitude_of_a_place(signed: bool):
    found = torch.tensor(magnitudes(signed), dtype=torch.float64)
    lines = torch.tensor(magnitude_lines(signed), dtype=torch.float64)
    places = torch.arange(len(found), dtype=torch.float64)
    ours = (places[:, None] * lines[:, 0] + lines[:, 1]).amax(1).clamp(0, 1)
    assert (ours - found).abs().max() <= 4 * 2**-52


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([0.0, 0.0], [0.0, 0.0]),
        ([-0.0, 0.0], [0.0, 0.0]),
        ([1e-40, 0.0], [0.0, 0.0]),  # below the smallest normal number
        ([-3.0, 0.0], [-3.0, 0.0]),  # the largest is exact, whatever its sign
        ([INF, 1.0], [INF, NAN]),
        ([NAN, 1.0], [NAN, NAN]),
    ],
)
def test_special_numbers(value: list[float], expected: list[float]):
    found = dequantize(*quantize(torch.tensor(value), 32, True), 32, True)
    assert torch.equal(found.nan_to_num(7.0), torch.tensor(expected).nan_to_num(7.0))
