"""How one parameter lies at rest along one mesh axis.

A parameter of ``shape`` is cut along ``dim`` into ``world`` blocks as ``torch.chunk`` cuts it: rank
r owns rows ``[r * rows, (r + 1) * rows)`` of that dimension, ``rows = ceil(shape[dim] / world)``.
Every rank stores a whole block, padded, so that program types are the same on all ranks;
``DTensor`` locals are narrow views of that storage.

    shape [5, 32] over 4 ranks     rows = 2, storage [2, 32] on each, locals [2, 2, 1, 0] rows
    shape [5, 3]  over 4 ranks     block of 6 elements, storage [16] (aligned to 16 elements)
"""

import math
from dataclasses import dataclass
from functools import cached_property

ALIGN_ELEMENTS = 16  # 64 bytes of fp32: one AVX-512 vector, one cache line
VECTOR_BYTES = 64


@dataclass(frozen=True)
class Layout:
    """Placement of a parameter of global ``shape`` on the ``world`` ranks of ``axis``.

    ``dim`` is the sharded dimension, or ``None`` for a parameter that every rank keeps whole.
    A shard is padded to a multiple of ``align`` elements, so that elementwise kernels take whole
    vectors wherever a shard begins.
    """

    axis: str
    world: int
    shape: tuple[int, ...]
    dim: int | None
    align: int = ALIGN_ELEMENTS

    @property
    def replicated(self) -> bool:
        """True when every rank keeps the whole parameter."""
        return self.dim is None

    @cached_property
    def rows(self) -> int:
        """Rows of ``dim`` in one block (``ceil(shape[dim] / world)``)."""
        return 0 if self.dim is None else -(-self.shape[self.dim] // self.world)

    @cached_property
    def block_shape(self) -> tuple[int, ...]:
        """Shape of one block: ``shape`` with ``rows`` in place of ``shape[dim]``."""
        if self.dim is None:
            return self.shape
        return (*self.shape[: self.dim], self.rows, *self.shape[self.dim + 1 :])

    @cached_property
    def storage_shape(self) -> tuple[int, ...]:
        """Shape of what each rank stores; flat where a block needs padding to be aligned."""
        numel = math.prod(self.block_shape)
        if self.dim is None or numel % self.align == 0:
            return self.block_shape
        return (-(-numel // self.align) * self.align,)

    @property
    def storage_numel(self) -> int:
        """Elements each rank stores, padding included."""
        return math.prod(self.storage_shape)

    @property
    def flat(self) -> bool:
        """True when a block is stored flat, with padding behind it."""
        return self.storage_shape != self.block_shape

    @property
    def padded(self) -> bool:
        """True when some rank stores elements that belong to no parameter."""
        return self.storage_numel * (1 if self.dim is None else self.world) != math.prod(self.shape)

    def first_row(self, rank: int) -> int:
        """Index in ``dim`` of the first row of ``rank``; the end of ``dim`` if it owns none."""
        assert self.dim is not None
        return min(rank * self.rows, self.shape[self.dim])

    def local_rows(self, rank: int) -> int:
        """Rows of ``dim`` that ``rank`` owns: ``rows``, fewer at the end, 0 past it."""
        assert self.dim is not None
        return max(0, min(self.rows, self.shape[self.dim] - rank * self.rows))

    def local_shape(self, rank: int) -> tuple[int, ...]:
        """Shape of the ``DTensor`` local of ``rank``."""
        if self.dim is None:
            return self.shape
        return (*self.shape[: self.dim], self.local_rows(rank), *self.shape[self.dim + 1 :])


def alignment(itemsize: int) -> int:
    """Elements of ``itemsize`` bytes that a shard is a multiple of: whole vectors."""
    return max(ALIGN_ELEMENTS, VECTOR_BYTES // itemsize)


def choose_layout(shape: tuple[int, ...], world: int, axis: str, itemsize: int = 4) -> Layout:
    """Pick the dimension to shard: the first with at least ``world`` rows, else the largest.

    Only dimensions are considered along which each rank's rows lie at the start of its block:
    dimension 0 always, another one where no rank owns part of a block. A parameter is replicated
    when it is 0-d or empty, or when padding would make all shards together larger than twice the
    parameter (tiny parameters on many ranks).
    """
    numel = math.prod(shape)
    align = alignment(itemsize)
    whole = Layout(axis, world, shape, None, align)
    if not shape or numel == 0 or world == 1:
        return whole
    dims = [dim for dim in range(len(shape)) if _rows_lead(Layout(axis, world, shape, dim))]
    large = [dim for dim in dims if shape[dim] >= world]
    dim = large[0] if large else max(dims, key=lambda d: shape[d])
    chosen = Layout(axis, world, shape, dim, align)
    return whole if chosen.storage_numel * world > 2 * numel else chosen


def _rows_lead(layout: Layout) -> bool:
    assert layout.dim is not None
    outer = math.prod(layout.shape[: layout.dim])
    return outer == 1 or layout.shape[layout.dim] % layout.rows == 0
