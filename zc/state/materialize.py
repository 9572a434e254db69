"""From a sharded model on the meta device to real shards."""

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from zc.state.modules import adopt
from zc.state.padding import at_rest, new_storage
from zc.state.spec import mark_replaced, set_spec, spec_of


def materialize(model: nn.Module, device: torch.device | str) -> nn.Module:
    """Give what is on meta in ``model``, parameters and buffers, zeroed memory on ``device``.

    A rank allocates its shards and nothing more; ties hold. Values come from what is called next:
    ``zc.load_full_state_dict``, or an initialiser that works on ``DTensor`` parameters in place.

    Returns:
        ``model`` itself. Build the optimizer after this.
    """
    device = torch.device(device)
    done: dict[nn.Parameter, nn.Parameter] = {}
    buffers: dict[torch.Tensor, torch.Tensor] = {}
    for module in model.modules():
        for name, param in module._parameters.items():
            if param is None or not param.is_meta:
                continue
            if param not in done:
                done[param] = _real(param, device)
            adopt(module, name, done[param])
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = buffers.setdefault(
                    buffer, torch.zeros_like(buffer, device=device)
                )
    return model


def _real(param: nn.Parameter, device: torch.device) -> nn.Parameter:
    spec = spec_of(param)
    value: torch.Tensor
    if spec is not None and isinstance(param, DTensor):
        storage = new_storage(spec.layout, param.dtype, device)
        value = at_rest(storage, spec.layout, param.device_mesh)
    else:
        value = torch.zeros_like(param, device=device)
    new = nn.Parameter(value, requires_grad=param.requires_grad)
    vars(new).update(vars(param))
    if spec is not None:
        set_spec(new, spec)
        mark_replaced(param, spec.name)
    return new
