"""``DTensor`` parameters over padded storage: the same number of elements on every rank."""

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from zc.program.layout import Layout
from zc.program.packing import local_view


def new_storage(layout: Layout, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Storage for one rank's shard, of ``layout.storage_shape``, zeros in it."""
    return torch.zeros(layout.storage_shape, dtype=dtype, device=device)


def at_rest(storage: torch.Tensor, layout: Layout, mesh: DeviceMesh) -> DTensor:
    """The ``DTensor`` whose local tensor is a view at the start of ``storage``."""
    return placed(
        local_view(storage, layout, layout.local_shape(mesh.get_local_rank())), layout, mesh
    )


def placed(local: torch.Tensor, layout: Layout, mesh: DeviceMesh) -> DTensor:
    """The ``DTensor`` whose local tensor is ``local``."""
    placement = Replicate() if layout.dim is None else Shard(layout.dim)
    stride = torch.empty(layout.shape, device="meta").stride()
    return DTensor.from_local(
        local, mesh, [placement], run_check=False, shape=torch.Size(layout.shape), stride=stride
    )


def is_padded(tensor: DTensor, layout: Layout) -> bool:
    """Whether the local tensor of ``tensor`` lies alone in storage padded for ``layout``."""
    local = tensor.to_local()
    wanted = layout.storage_numel * local.element_size()
    alone = local.storage_offset() == 0 and local.untyped_storage().nbytes() == wanted
    return alone and local.is_contiguous()


@torch.no_grad()
def repad(tensor: torch.Tensor, layout: Layout) -> torch.Tensor:
    """``tensor`` itself where its storage is padded, a copy in padded storage where it is not."""
    if not isinstance(tensor, DTensor) or is_padded(tensor, layout):
        return tensor
    local = tensor.to_local()
    storage = new_storage(layout, local.dtype, local.device)
    local_view(storage, layout, tuple(local.shape)).copy_(local)
    return at_rest(storage, layout, tensor.device_mesh)
