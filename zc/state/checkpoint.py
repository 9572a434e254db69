"""Full state dicts of sharded models, written and read one parameter at a time."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from zc.errors import ShardError
from zc.program.layout import Layout
from zc.program.packing import run_op, storage_of, unpack
from zc.state.shard import parameter_names
from zc.state.sources import Source, open_source
from zc.state.spec import spec_of


@torch.no_grad()
def full_state_dict(model: nn.Module, *, cpu: bool = True) -> dict[str, Any]:
    """The ordinary state dict of ``model``: full tensors on rank 0, nothing on the other ranks.

    Every rank of the model's mesh must call it; rank 0 is the mesh's first. It holds the result
    and one parameter more at a time.

    Args:
        model: a sharded model; of an unsharded one, tensors are copied, on rank 0 alone.
        cpu: whether to move each full tensor to the CPU.

    Raises:
        ShardError: for a parameter on meta.
    """
    result: dict[str, Any] = {}
    done: dict[int, torch.Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, torch.Tensor):
            result[name] = value
            continue
        if id(value) not in done:
            done[id(value)] = _full(name, value, cpu)
        result[name] = done[id(value)]
    return result if not dist.is_initialized() or _first(model) else {}


def _first(model: nn.Module) -> bool:
    for param in model.parameters():
        if isinstance(param, DTensor):
            return param.device_mesh.get_local_rank() == 0
    return dist.get_rank() == 0


def _full(name: str, value: torch.Tensor, cpu: bool) -> torch.Tensor:
    if value.is_meta:
        raise ShardError(f"'{name}' is on meta and has no values; call zc.materialize first")
    spec = spec_of(value)
    if spec is None or not isinstance(value, DTensor):
        full = value.detach().clone()
    elif spec.layout.replicated:
        full = value.to_local().clone()
    else:
        full = _gather(storage_of(value.to_local(), spec.layout), spec.layout, value)
    return full.cpu() if cpu else full


def _gather(storage: torch.Tensor, layout: Layout, param: DTensor) -> torch.Tensor:
    """The full parameter on the first rank, an empty tensor on the others."""
    group = param.device_mesh.get_group()
    first, *rest = layout.storage_shape
    gathered, blocks = storage.new_empty(0), None
    if group.rank() == 0:
        gathered = storage.new_empty((layout.world * first, *rest))
        blocks = list(gathered.chunk(layout.world))
    dist.gather(storage, blocks, dst=dist.get_global_rank(group, 0), group=group)
    if group.rank() != 0:
        return gathered
    full = unpack(run_op, gathered, layout)
    return full if full.numel() == gathered.numel() else full.clone()


@torch.no_grad()
def load_full_state_dict(
    model: nn.Module, source: Mapping[str, Any] | str | Path, *, strict: bool = True
) -> None:
    """Fill the shards of ``model`` from full tensors, of which each rank reads only its rows.

    Args:
        model: a sharded model, not on meta.
        source: a dict of full tensors, the same on every rank; or the path of a ``.safetensors``
            file, a ``.safetensors.index.json`` beside its files, or a torch file.
        strict: whether to refuse missing and unexpected names. A tied parameter needs one of its
            names.

    Raises:
        ShardError: naming what is missing, unexpected, of another shape, or still on meta.
    """
    targets = {k: v for k, v in model.state_dict(keep_vars=True).items() if _is_tensor(v)}
    with ExitStack() as stack:
        opened = open_source(source, stack)
        found = opened.keys()
        _check_names(model, targets, found, strict)
        known = {name: targets[name] for name in targets if name in found}
        _check_shapes(known, opened)
        for name, value in known.items():
            _load(name, value, opened)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _check_names(
    model: nn.Module, targets: dict[str, torch.Tensor], found: set[str], strict: bool
) -> None:
    ties = {name: names for names in parameter_names(model).values() for name in names}
    missing = [n for n in targets if found.isdisjoint(ties.get(n, (n,)))]
    if strict and missing:
        raise ShardError(
            f"the checkpoint lacks {_listing(missing)}; pass strict=False to leave them as they are"
        )
    extra = sorted(found - set(model.state_dict(keep_vars=True)))
    if strict and extra:
        raise ShardError(
            f"the checkpoint has {_listing(extra)}, which the model lacks; pass strict=False to "
            f"ignore them"
        )


def _check_shapes(known: dict[str, torch.Tensor], source: Source) -> None:
    for name, value in known.items():
        shape = source.shape(name)
        if shape != tuple(value.shape):
            raise ShardError(
                f"'{name}' is {list(shape)} in the checkpoint and {list(value.shape)} in the model"
            )
        if value.is_meta:
            raise ShardError(
                f"'{name}' is on meta; call zc.materialize(model, device) before loading"
            )


def _load(name: str, value: torch.Tensor, source: Source) -> None:
    if not isinstance(value, DTensor):
        value.copy_(source.whole(name))
        return
    spec = spec_of(value)
    assert spec is not None
    layout, local = spec.layout, value.to_local()
    if layout.dim is None:
        local.copy_(source.whole(name))
        return
    rank = value.device_mesh.get_local_rank()
    start = layout.first_row(rank)
    local.copy_(source.rows(name, layout.dim, start, start + layout.local_rows(rank)))


def _listing(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
