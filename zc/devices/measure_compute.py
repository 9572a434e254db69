"""Measures what one rank computes with: matrix products, memory, and the fixed cost of an op.

All ranks measure at the same time, since that is how they compute in a step: cores of one machine
share its memory. Figures are seconds by name, so that the slowest rank's can be taken of each.
"""

from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from torch import fx

from zc import torch_private
from zc.devices.fits import Samples
from zc.devices.stopwatch import Stopwatch
from zc.run.compile import can_compile

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SHAPES = {  # rows, inner and columns of products as in a training step
    "cpu": ((64, 128, 128), (128, 256, 512), (256, 512, 512), (256, 512, 2048)),
    "cuda": ((256, 1024, 1024), (1024, 2048, 2048), (4096, 4096, 4096), (8192, 4096, 8192)),
}
HEADS = {"cpu": (2, 8, 128, 64), "cuda": (4, 16, 2048, 128)}  # batch, heads, length, width
LARGEST = {"cpu": 64 << 20, "cuda": 1 << 30}  # bytes of one operand
SMALLEST = 64 << 10
_EVICTING = 32 << 20  # bytes, more than caches hold
_CALLS = 50  # of something so short that the clock itself would count
_TINY = 64
_SLOW = 0.02  # seconds of a product, after which larger ones are left out
Figures = dict[str, float]


def measure_compute(watch: Stopwatch, *, compiled: bool, quick: bool = False) -> Figures:
    """Seconds of products, of pointwise ops and of next to nothing, on ``watch.device``.

    Args:
        watch: how to take times.
        compiled: whether to compile a region and time it as well.
        quick: the smallest sizes only, for tests of the procedure.
    """
    found = dict(_products(watch, quick))
    found |= dict(_attention(watch, quick))
    found |= dict(_pointwise(watch, quick))
    if compiled and can_compile():
        found["region"] = _cold(watch, _region(watch.device))
    return found


def _products(watch: Stopwatch, quick: bool) -> Iterator[tuple[str, float]]:
    """``product float32 <operations>``: the mean of the three products that a layer takes.

    Forward multiplies by the weight, backward by its transpose, and the gradient of the weight is
    the product of the transposed input.
    """
    shapes = SHAPES[watch.device.type][: 2 if quick else None]
    for dtype in DTYPES[: 1 if quick else None]:
        for rows, inner, columns in shapes:
            products = three_products(rows, inner, columns, dtype, watch.device)
            seconds = watch.seconds(products) / 3
            yield f"product {_name(dtype)} {2 * rows * inner * columns}", seconds
            if seconds > _SLOW and (rows, inner, columns) != shapes[0]:
                break  # a dtype that this device only imitates


def three_products(
    rows: int, inner: int, columns: int, dtype: torch.dtype, device: torch.device
) -> Callable[[], Any]:
    """The product of a layer, and those of its two gradients."""
    x = torch.ones(rows, inner, dtype=dtype, device=device)
    w = torch.ones(columns, inner, dtype=dtype, device=device)
    y = torch.ones(rows, columns, dtype=dtype, device=device)
    return lambda: (torch.mm(x, w.t()), torch.mm(y, w), torch.mm(y.t(), x))


def _attention(watch: Stopwatch, quick: bool) -> Iterator[tuple[str, float]]:
    """``attention float32 <operations>``: the two products of causal attention, all of them."""
    batch, heads, length, width = (1, 1, 32, 16) if quick else HEADS[watch.device.type]
    dtype = torch.float32 if watch.device.type == "cpu" else torch.bfloat16
    q = torch.ones(batch, heads, length, width, dtype=dtype, device=watch.device)
    attend = torch.nn.functional.scaled_dot_product_attention
    seconds = watch.seconds(lambda: attend(q, q, q, is_causal=True))
    yield f"attention {_name(dtype)} {4 * batch * heads * length**2 * width}", seconds


def _pointwise(watch: Stopwatch, quick: bool) -> Iterator[tuple[str, float]]:
    """``pointwise <bytes>``: a sum into new memory, by bytes read and written."""
    size, largest = SMALLEST, SMALLEST << 2 if quick else LARGEST[watch.device.type]
    while size <= largest:
        a, b = (torch.ones(size // 4, device=watch.device) for _ in range(2))
        yield f"pointwise {3 * size}", watch.seconds(_sum(a, b), 4)
        size <<= 2
    tiny = torch.ones(_TINY, device=watch.device)
    yield "op", watch.seconds(_sum(tiny, tiny), _CALLS)


def _sum(a: torch.Tensor, b: torch.Tensor) -> Callable[[], Any]:
    add: Any = torch.ops.aten.add.Tensor
    return lambda: add(a, b)


def _cold(watch: Stopwatch, function: Callable[[], Any]) -> float:
    """Median seconds of ``function`` when caches hold something else, as they do in a step."""
    other = torch.ones(_EVICTING // 4, device=watch.device)

    def once() -> float:
        other.add_(1)
        return watch.once(function)

    function()
    return median(once() for _ in range(4 * watch.repeats))


def _region(device: torch.device) -> Callable[[], Any]:
    """A compiled region that has next to nothing to compute."""
    mode = torch_private.fake_mode_of([])
    graph = fx.Graph()
    x = graph.placeholder("x")
    result = graph.call_function(torch.ops.aten.add.Tensor, (x, x))
    graph.output((result,))
    with mode:
        x.meta["val"] = torch.empty(_TINY, device=device)
        result.meta["val"] = x.meta["val"] + x.meta["val"]
    run = torch_private.compile_region(fx.GraphModule({}, graph), [x.meta["val"]])
    tiny = torch.ones(_TINY, device=device)
    return lambda: run([tiny])


def samples_of(figures: Figures, kind: str) -> Samples:
    """Sizes and seconds of the figures whose names begin with ``kind``."""
    parts = [(name.split(" "), seconds) for name, seconds in figures.items()]
    prefix = kind.split(" ")
    return [(float(p[-1]), seconds) for p, seconds in parts if p[:-1] == prefix]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
