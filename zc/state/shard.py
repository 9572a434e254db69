"""``zc.shard``: every rank keeps one block of each parameter, as ``DTensor`` parameters in place.

Values are rank 0's, as with ``DistributedDataParallel``. Parameters are converted one at a time, so
the full model is never there twice.
"""

import hashlib

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from zc.comm.groups import DEFAULT_AXIS, register_mesh
from zc.errors import ShardError
from zc.program.layout import Layout, choose_layout
from zc.program.packing import local_view
from zc.run.heap import keep_freed
from zc.state.modules import convert_module
from zc.state.optimizers import watch_optimizers
from zc.state.padding import at_rest, new_storage
from zc.state.refusals import check_model, device_of
from zc.state.spec import ParamSpec, mark_replaced, set_spec

_ARGUMENTS = "_zc_shard_arguments"
Names = dict[nn.Parameter, tuple[str, ...]]
Dtypes = tuple[torch.dtype | None, torch.dtype | None]


def shard(
    model: nn.Module,
    mesh: DeviceMesh | None = None,
    *,
    param_dtype: torch.dtype | None = None,
    reduce_dtype: torch.dtype | None = None,
) -> nn.Module:
    """Convert ``model`` in place so that each rank of ``mesh`` keeps its block of every parameter.

    Args:
        model: an ordinary module, on one device; on ``meta`` nothing is allocated.
        mesh: a 1-D mesh; the whole world by default. Without a process group parameters stay whole.
        param_dtype: dtype in which parameters are gathered and computed with, that at rest by
            default; the parameters of batch norms, which go with their running statistics, are left
            out.
        reduce_dtype: dtype in which gradients are averaged; ``param_dtype`` by default.

    Returns:
        ``model`` itself; the same call again does nothing.

    Raises:
        ShardError: for what cannot train correctly from shards, named, with the remedy.
    """
    _check_dtypes(param_dtype=param_dtype, reduce_dtype=reduce_dtype)
    arguments = (mesh, param_dtype, reduce_dtype)
    if model.__dict__.get(_ARGUMENTS) == arguments:
        return model
    names = parameter_names(model)
    check_model(model, names)
    device = device_of(names)
    if device.type == "cpu":
        keep_freed()
    mesh = _resolve(mesh, device)
    _check_agreement(names, mesh)
    uncast = _batch_norm_parameters(model)
    replaced = {}
    for param, found in names.items():
        dtypes = (None if param in uncast else param_dtype, reduce_dtype)
        replaced[param] = _convert(param, found, mesh, dtypes)
    _install(model, replaced)
    watch_optimizers()
    model.__dict__[_ARGUMENTS] = arguments
    return model


def parameter_names(model: nn.Module) -> Names:
    """Every parameter of ``model`` once, with all the names it has."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        names.setdefault(param, []).append(name)
    return {param: tuple(found) for param, found in names.items()}


def _batch_norm_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Parameters that must keep the dtype of the running statistics beside them."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return {param for norm in norms for param in norm.parameters(recurse=False)}


def _check_dtypes(**dtypes: torch.dtype | None) -> None:
    for option, dtype in dtypes.items():
        if dtype is not None and not dtype.is_floating_point:
            raise ShardError(f"{option}={dtype} is no floating-point dtype; take torch.bfloat16")


def _resolve(mesh: DeviceMesh | None, device: torch.device) -> DeviceMesh | None:
    if mesh is None:
        if not dist.is_initialized():
            return None
        mesh = init_device_mesh(
            _device_type(device), (dist.get_world_size(),), mesh_dim_names=(DEFAULT_AXIS,)
        )
    if mesh.get_coordinate() is None:
        raise ShardError(
            f"rank {dist.get_rank()} is not in the mesh {mesh.mesh.tolist()}; call zc.shard on "
            f"ranks of the mesh only"
        )
    register_mesh(mesh)
    if device.type not in (mesh.device_type, "meta"):
        raise ShardError(
            f"the model is on {device} and the mesh on {mesh.device_type}; move the model first"
        )
    return mesh


def _device_type(device: torch.device) -> str:
    if device.type != "meta":
        return device.type
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or "gloo" in dist.get_backend():
        return "cpu"
    return accelerator.type


def _check_agreement(names: Names, mesh: DeviceMesh | None) -> None:
    """Refuse, on every rank, models that differ between ranks: they would hang later."""
    if mesh is None:
        return
    text = repr([(found, tuple(p.shape), p.dtype, p.requires_grad) for p, found in names.items()])
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
    mine = torch.tensor([digest], device=mesh.device_type)
    first = mine.clone()
    group = mesh.get_group()
    dist.broadcast(first, dist.get_global_rank(group, 0), group=group)
    differs = (first != mine).to(torch.int64)
    dist.all_reduce(differs, group=group)
    if differs.item():
        raise ShardError(
            f"{differs.item()} of {mesh.size()} ranks call zc.shard with parameters unlike those "
            f"of the first; build the same model (names, shapes, dtypes, requires_grad) on every "
            f"rank"
        )


def _convert(
    param: nn.Parameter, names: tuple[str, ...], mesh: DeviceMesh | None, dtypes: Dtypes
) -> nn.Parameter:
    shape = tuple(param.shape)
    if mesh is None:
        alone = Layout(DEFAULT_AXIS, 1, shape, None)
        set_spec(param, ParamSpec(names, alone, *dtypes, distributed=False))
        return param
    axis = (mesh.mesh_dim_names or (DEFAULT_AXIS,))[0]
    layout = choose_layout(shape, mesh.size(), axis, param.dtype.itemsize)
    storage = new_storage(layout, param.dtype, param.device)
    if not param.is_meta:
        _fill(storage, param.detach(), layout, mesh)
    new = nn.Parameter(at_rest(storage, layout, mesh), requires_grad=param.requires_grad)
    vars(new).update(vars(param))
    set_spec(new, ParamSpec(names, layout, *dtypes))
    mark_replaced(param, names[0])
    return new


def _fill(storage: torch.Tensor, full: torch.Tensor, layout: Layout, mesh: DeviceMesh) -> None:
    group = mesh.get_group()
    full = full.contiguous()
    if full.numel():
        dist.broadcast(full, dist.get_global_rank(group, 0), group=group)
    _copy_rows(storage, full, layout, mesh.get_local_rank())


def _copy_rows(storage: torch.Tensor, full: torch.Tensor, layout: Layout, rank: int) -> None:
    mine = full
    if layout.dim is not None:
        start = layout.first_row(rank)
        mine = full.narrow(layout.dim, start, layout.local_rows(rank))
    local_view(storage, layout, layout.local_shape(rank)).copy_(mine)


def _install(model: nn.Module, replaced: dict[nn.Parameter, nn.Parameter]) -> None:
    for module in model.modules():
        for name, param in module._parameters.items():
            if param is not None:
                module._parameters[name] = replaced[param]
    for module in model.modules():
        if next(module.parameters(), None) is not None:
            convert_module(module)
