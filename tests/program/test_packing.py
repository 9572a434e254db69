import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from zc.program.layout import Layout, choose_layout
from zc.program.packing import local_view, pack, run_op, storage_of, unpack

SHAPES = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)


def numbered(shape: tuple[int, ...]) -> torch.Tensor:
    return 1.0 + torch.arange(math.prod(shape), dtype=torch.float32).view(shape)


@given(SHAPES, st.integers(2, 5), st.data())
def test_unpack_inverts_pack(shape, world, data):
    dim = data.draw(st.integers(0, len(shape) - 1))
    transposed = data.draw(st.booleans())
    layout = Layout("dp", world, shape, dim)
    full = numbered(shape)
    given_full = full.transpose(0, -1).contiguous().transpose(0, -1) if transposed else full
    packed = pack(run_op, given_full, layout, contiguous=given_full.is_contiguous())
    first, *rest = layout.storage_shape
    assert packed.shape == (world * first, *rest)
    assert packed.is_contiguous()
    assert packed.sum() == full.sum()  # zeros in the padding
    again = unpack(run_op, packed, layout)
    assert torch.equal(again, full)
    assert again.is_contiguous()


@given(SHAPES, st.integers(2, 5))
def test_a_block_begins_with_what_its_rank_owns(shape, world):
    layout = choose_layout(shape, world, "dp")
    if layout.dim is None:
        return
    full = numbered(shape)
    packed = pack(run_op, full, layout, contiguous=True)
    for rank, block in enumerate(packed.chunk(world)):
        local = local_view(block, layout, layout.local_shape(rank))
        rows = full.narrow(layout.dim, layout.first_row(rank), layout.local_rows(rank))
        assert torch.equal(local, rows)


def test_unpacking_an_even_first_dimension_is_free():
    layout = Layout("dp", 2, (8, 4), 0)
    gathered = numbered((8, 4))
    assert unpack(run_op, gathered, layout) is gathered
    assert pack(run_op, gathered, layout, contiguous=True) is gathered


def test_storage_of_a_padded_local_is_a_view():
    layout = Layout("dp", 2, (5, 3), 0)
    storage = torch.zeros(layout.storage_shape)
    local = local_view(storage, layout, layout.local_shape(1))
    assert storage_of(local, layout).data_ptr() == storage.data_ptr()
    assert storage_of(local, layout).shape == layout.storage_shape


def test_storage_of_another_local_is_a_padded_copy():
    layout = Layout("dp", 2, (5, 3), 0)
    local = numbered((2, 3))
    storage = storage_of(local, layout)
    assert storage.shape == layout.storage_shape
    assert torch.equal(storage[:6], local.flatten())
    assert not storage[6:].any()


def test_storage_of_a_transposed_local_is_a_contiguous_copy():
    layout = Layout("dp", 2, (8, 4), 0)
    local = numbered((4, 4)).t()
    storage = storage_of(local, layout)
    assert torch.equal(storage, local)
    assert storage.is_contiguous()
