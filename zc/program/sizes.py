"""How large the value of a node is: asked for each reader, worked out once."""

from typing import NamedTuple

import torch
from torch import fx

from zc.program.collectives import hint, nbytes
from zc.program.nodes import tensors_of

_SIZES = "zc_sizes"  # with a node: its value, and what sizes_of says of it


class Sizes(NamedTuple):
    """Sizes of a value; symbolic ones count as their hints.

    ``nbytes`` are those of all its elements, ``touched`` those that are there in memory, and
    ``elements`` how many its largest tensor has.
    """

    nbytes: int
    touched: int
    elements: int


def sizes_of(node: fx.Node) -> Sizes:
    """The sizes of the value of ``node``; kept with it for as long as that is the same object."""
    meta = node.meta
    value, known = meta.get("val"), meta.get(_SIZES)
    if known is not None and known[0] is value:
        return known[1]
    tensors = tensors_of(node)
    found = Sizes(
        sum(map(nbytes, tensors)),
        sum(map(touched_bytes, tensors)),
        max((hint(tensor.numel()) for tensor in tensors), default=0),
    )
    meta[_SIZES] = value, found
    return found


def touched_bytes(tensor: torch.Tensor) -> int:
    """Bytes that ``tensor`` shows: elements repeated by ``expand`` are one in memory."""
    numel = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        numel *= 1 if isinstance(stride, int) and stride == 0 and size != 0 else hint(size)
    return numel * tensor.element_size()
