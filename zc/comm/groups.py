"""From axis names to process groups: the one place where a program's axes become real.

``zc.shard`` registers the mesh it shards over. Data-parallel programs without sharded parameters
use the default group under the name ``dp``.
"""

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from zc.errors import ShardError
from zc.program.mesh import Mesh
from zc.torch_private import let_gloo_finish_at_exit

DEFAULT_AXIS = "dp"
_groups: dict[str, dist.ProcessGroup] = {}


def register_mesh(mesh: DeviceMesh) -> str:
    """Remember the process group of a 1-D ``mesh`` under its axis name, which is returned.

    Raises:
        ShardError: for a mesh of more than one axis, or an axis name that already means other
            ranks.
    """
    if mesh.ndim != 1:
        raise ShardError(
            f"mesh has {mesh.ndim} axes {mesh.mesh_dim_names}; zc.shard takes a 1-D mesh: pass "
            f"mesh['{(mesh.mesh_dim_names or ('dp',))[0]}'], or leave mesh out for the whole world"
        )
    axis = (mesh.mesh_dim_names or (DEFAULT_AXIS,))[0]
    group = mesh.get_group()
    known = _groups.get(axis)
    if known is not None and _alive(known):
        ranks, known_ranks = _ranks(group), _ranks(known)
        if ranks != known_ranks:
            raise ShardError(
                f"mesh axis '{axis}' means ranks {ranks} here and ranks {known_ranks} in an "
                f"earlier zc.shard; give the meshes different mesh_dim_names"
            )
        return axis
    _groups[axis] = group
    return axis


def group_of(axis: str) -> dist.ProcessGroup:
    """The process group of ``axis``.

    Raises:
        ShardError: when the axis was never registered and is not the default one.
    """
    let_gloo_finish_at_exit()
    known = _groups.get(axis)
    if known is not None and _alive(known):
        return known
    if axis == DEFAULT_AXIS and dist.is_initialized():
        assert dist.group.WORLD is not None
        return dist.group.WORLD
    raise ShardError(
        f"no process group for mesh axis '{axis}'; call torch.distributed.init_process_group, then "
        f"zc.shard(model, mesh) in this process"
    )


def default_mesh() -> Mesh:
    """The mesh of data-parallel programs: the whole world as ``dp``; no axis without a group."""
    if not dist.is_initialized():
        return Mesh()
    return Mesh(((DEFAULT_AXIS, dist.get_world_size()),))


def registered_mesh() -> Mesh:
    """All axes that ``zc.shard`` registered, with sizes; the default mesh if there are none."""
    axes = tuple((name, g.size()) for name, g in _groups.items() if _alive(g))
    return Mesh(axes) if axes else default_mesh()


def axis_of_group(name: str) -> str | None:
    """The axis whose process group torch calls ``name``; ``None`` if there is none."""
    for axis, group in _groups.items():
        if _alive(group) and group.group_name == name:
            return axis
    world = dist.group.WORLD if dist.is_initialized() else None
    if world is not None and world.group_name == name:
        return DEFAULT_AXIS
    return None


def rank_on(axis: str) -> int:
    """This process's position along ``axis``; 0 without a process group."""
    return dist.get_rank(group_of(axis)) if dist.is_initialized() else 0


def _ranks(group: dist.ProcessGroup) -> list[int]:
    return dist.get_process_group_ranks(group)


def _alive(group: dist.ProcessGroup) -> bool:
    if not dist.is_initialized():
        return False
    try:
        dist.get_process_group_ranks(group)
    except (KeyError, RuntimeError, ValueError):
        return False
    return True
