import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zc.program.layout import ALIGN_ELEMENTS, Layout, choose_layout

SHAPES = st.lists(st.integers(0, 40), max_size=3).map(tuple)


@pytest.mark.parametrize(
    ("shape", "world", "dim", "storage"),
    [
        ((8, 4), 2, 0, (4, 4)),
        ((5, 32), 4, 0, (2, 32)),  # uneven: local rows 2, 2, 1, 0
        ((3, 64), 4, 1, (3, 16)),  # fewer rows than ranks: the next dimension
        ((512, 768), 1024, 1, (512, 1)),  # no dimension is large enough: the largest
        ((1, 33, 5), 2, 1, (96,)),  # uneven behind dimensions of size 1
        ((2, 33), 2, 0, (48,)),
        ((3, 33), 4, 0, (48,)),  # dimension 1 would cut a block
        ((3, 5), 4, None, (3, 5)),  # and here dimension 0 would pad too much
        ((50,), 2, 0, (32,)),  # aligned
        ((6,), 4, None, (6,)),  # tiny
        ((), 4, None, ()),
        ((0, 3), 4, None, (0, 3)),
        ((64, 64), 1, None, (64, 64)),
    ],
)
def test_dimension_and_storage(shape, world, dim, storage):
    layout = choose_layout(shape, world, "dp")
    assert (layout.dim, layout.storage_shape) == (dim, storage)


def test_uneven_rows():
    layout = Layout("dp", 4, (5, 32), 0)
    assert [layout.local_shape(r) for r in range(4)] == [(2, 32), (2, 32), (1, 32), (0, 32)]
    assert [layout.first_row(r) for r in range(4)] == [0, 2, 4, 5]
    assert layout.padded
    assert not Layout("dp", 2, (8, 4), 0).padded


@given(SHAPES, st.integers(1, 9))
def test_properties(shape, world):
    layout = choose_layout(shape, world, "dp")
    assert layout.storage_numel * world <= 2 * math.prod(shape) or layout.replicated
    if layout.dim is None:
        return
    size = shape[layout.dim]
    assert sum(layout.local_rows(r) for r in range(world)) == size
    assert layout.storage_numel % ALIGN_ELEMENTS == 0
    blocks = torch.arange(math.prod(shape)).view(shape).split(layout.rows, layout.dim)
    assert [b.shape for b in blocks] == [layout.local_shape(r) for r in range(len(blocks))]
