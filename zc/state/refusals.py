"""What ``zc.shard`` refuses, by name, before it changes anything."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from zc import torch_private
from zc.errors import ShardError
from zc.state.spec import spec_of

_WRAPPERS = (
    nn.parallel.DistributedDataParallel,
    nn.DataParallel,
    FullyShardedDataParallel,
    FSDPModule,
)
_HOOKS = {
    WeightNorm: "torch.nn.utils.parametrizations.weight_norm",
    SpectralNorm: "torch.nn.utils.parametrizations.spectral_norm",
    BasePruningMethod: "torch.nn.utils.prune.remove, which makes the pruning permanent",
}


def check_model(model: nn.Module, names: dict[nn.Parameter, tuple[str, ...]]) -> None:
    """Refuse modules and parameters that cannot train correctly from shards.

    Raises:
        ShardError: naming the module or the parameter, with the remedy.
    """
    for name, module in model.named_modules():
        _check_module(f"module '{name}'" if name else "the model", module)
    for param, (name, *_) in names.items():
        _check_parameter(name, param)
    _check_devices(names)
    _check_storages(names)


def _check_module(where: str, module: nn.Module) -> None:
    kind = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        raise ShardError(f"{where} is a scripted module; shard the module it was scripted from")
    if torch_private.is_compiled_wrapper(module):
        raise ShardError(f"{where} is already compiled; call zc.shard before torch.compile")
    if isinstance(module, _WRAPPERS):
        raise ShardError(
            f"{where} is wrapped in {kind}; zc.shard takes its place: pass the bare model"
        )
    for hook in module._forward_pre_hooks.values():
        for old, new in _HOOKS.items():
            if isinstance(hook, old):
                raise ShardError(
                    f"{where} recomputes a weight in a {old.__name__} hook; use {new} instead"
                )


def _check_parameter(name: str, param: nn.Parameter) -> None:
    if isinstance(param, UninitializedParameter):
        raise ShardError(f"'{name}' is lazy and has no shape yet; run one batch before zc.shard")
    if spec_of(param) is not None:
        raise ShardError(
            f"'{name}' is already sharded by zc; call zc.shard once, on the whole model"
        )
    if isinstance(param, DTensor):
        raise ShardError(f"'{name}' is already a DTensor; build the model from plain parameters")
    if type(param) is not nn.Parameter or param.layout != torch.strided:
        raise ShardError(
            f"'{name}' is a {type(param).__name__} of layout {param.layout}; only dense "
            f"torch.nn.Parameter can be sharded"
        )
    if param.grad is not None:
        raise ShardError(f"'{name}' has a gradient, which would be lost; set it to None first")
    if param._backward_hooks or param._post_accumulate_grad_hooks:
        raise ShardError(f"'{name}' has hooks, which would be lost; register them after zc.shard")


def _check_devices(names: dict[nn.Parameter, tuple[str, ...]]) -> None:
    first: tuple[str, torch.device] | None = None
    for param, (name, *_) in names.items():
        first = first or (name, param.device)
        if param.device != first[1]:
            raise ShardError(
                f"'{first[0]}' is on {first[1]} and '{name}' on {param.device}; move the model to "
                f"one device before zc.shard"
            )


def _check_storages(names: dict[nn.Parameter, tuple[str, ...]]) -> None:
    seen: dict[int, str] = {}
    for param, (name, *_) in names.items():
        if param.is_meta or param.numel() == 0:
            continue
        other = seen.setdefault(param.data_ptr(), name)
        if other != name:
            raise ShardError(
                f"'{other}' and '{name}' share memory without being one parameter; tie them by "
                f"assigning the same nn.Parameter to both"
            )


def device_of(params: Iterable[nn.Parameter]) -> torch.device:
    """The one device of ``params``; cpu if there are none."""
    return next((param.device for param in params), torch.device("cpu"))
