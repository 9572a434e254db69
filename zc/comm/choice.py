"""Which way of carrying out a collective is the fastest, by backend, group size and bytes.

The choice is a function of what is the same on all ranks of a group: they take the same way.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from zc.comm.direct import possible
from zc.comm.ways import WAYS, Transfer
from zc.errors import ExecutionError

Table = Mapping[str, Mapping[str, Mapping[int, Mapping[int, str]]]]

# backend, op, from so many ranks, from so many bytes of the full tensors: the fastest way. Where a
# backend is not named, the first of WAYS. Measured with examples/benchmarks/wire.py: on gloo,
# pairwise transfers are faster for large tensors, for small ones on an idle machine only; direct
# ones, where they are possible, are faster than both from some 100 KB on, in buckets from less on.
DEFAULTS: Table = {
    "gloo": {
        "all_gather": {2: {0: "native", 1_000_000: "pairwise"}},
        "reduce_scatter": {2: {0: "all_to_all", 1_000_000: "pairwise"}},
    }
}
WHERE_POSSIBLE: Table = {
    "gloo": {
        "all_gather": {2: {200_000: "direct"}},
        "reduce_scatter": {2: {200_000: "direct"}},
    }
}
DIRECT = "direct"  # of WAYS: for ranks that can read each other's memory
_measured: Table = {}


def way(op: str, backend: str, group_size: int, nbytes: int, *, allow_direct: bool = False) -> str:
    """The name of the fastest way for ``op``, ``all_gather`` or ``reduce_scatter``.

    Args:
        op: an all-reduce is a reduce-scatter and an all-gather.
        backend: as ``torch.distributed`` calls it.
        group_size: ranks.
        nbytes: of the full tensors of a bucket, together.
        allow_direct: whether the answer may be ``direct``.
    """
    for table in (_measured, WHERE_POSSIBLE, DEFAULTS):
        sizes = table.get(backend, {}).get(op, {})
        found = _at(_at(sizes, group_size) or {}, nbytes)
        if found is not None and (allow_direct or found != DIRECT):
            return found
    return next(iter(WAYS[op]))


def offered(op: str, group: dist.ProcessGroup) -> list[str]:
    """The ways that there are for ``op`` on ``group``; all ranks call this together."""
    return [name for name in WAYS[op] if name != DIRECT or possible(group)]


def use_measured(table: Table) -> None:
    """Take ``table`` before the defaults; all ranks must give the same one, ``{}`` to end it.

    It has the shape of ``DEFAULTS``: backend, op, from so many ranks, from so many bytes.

    Raises:
        ExecutionError: for an op or a way that there is not.
    """
    for backend, ops in table.items():
        for op, sizes in ops.items():
            if op not in WAYS:
                raise ExecutionError(f"{backend}: no op '{op}'; the ops are {_names(WAYS)}")
            for name in (name for by_bytes in sizes.values() for name in by_bytes.values()):
                if name not in WAYS[op]:
                    raise ExecutionError(
                        f"{backend}: no way '{name}' of {op}; the ways are {_names(WAYS[op])}"
                    )
    global _measured
    _measured = table


def _at(table: Mapping[int, Any], value: int) -> Any:
    """The entry with the largest key that ``value`` reaches."""
    keys = [key for key in table if key <= value]
    return table[max(keys)] if keys else None


def _names(table: Mapping[str, Any]) -> str:
    return ", ".join(table)


def start(
    op: str, tensors: Sequence[torch.Tensor], group: dist.ProcessGroup, full: int
) -> Transfer:
    """Start a gather of ``tensors``, or their transposition, of ``full`` bytes, the fastest way."""
    backend, n = dist.get_backend(group), group.size()
    name = way(op, backend, n, full, allow_direct=True)  # first: small ones need not be tried
    if name == DIRECT and not _directly(tensors, group):
        name = way(op, backend, n, full)
    return WAYS[op][name](list(tensors), group)


def _directly(tensors: Sequence[torch.Tensor], group: dist.ProcessGroup) -> bool:
    return all(tensor.device.type == "cpu" for tensor in tensors) and possible(group)
