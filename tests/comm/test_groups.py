"""Axis names and the groups they mean."""

import pytest
import torch.distributed as dist
from multiprocess import fake_world
from torch.distributed.device_mesh import init_device_mesh

from zc.comm.groups import default_mesh, group_of, rank_on, register_mesh
from zc.errors import ShardError
from zc.program.mesh import Mesh


def test_the_default_axis_is_the_world():
    assert default_mesh() == Mesh()
    assert rank_on("dp") == 0
    with fake_world(8, rank=3):
        assert default_mesh() == Mesh((("dp", 8),))
        assert rank_on("dp") == 3
        assert group_of("dp") is dist.group.WORLD


def test_a_registered_mesh_gives_its_group():
    with fake_world(4, rank=3):
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))["inner"]
        assert register_mesh(mesh) == "inner"
        assert group_of("inner").size() == 2
        assert rank_on("inner") == 1


def test_an_unknown_axis():
    with pytest.raises(ShardError) as caught:
        group_of("tp")
    assert str(caught.value) == (
        "no process group for mesh axis 'tp'; call torch.distributed.init_process_group, then "
        "zc.shard(model, mesh) in this process"
    )


def test_groups_of_an_earlier_world_are_forgotten():
    with fake_world(4):
        register_mesh(init_device_mesh("cpu", (4,), mesh_dim_names=("mine",)))
    with fake_world(2):
        with pytest.raises(ShardError):
            group_of("mine")
        assert register_mesh(init_device_mesh("cpu", (2,), mesh_dim_names=("mine",))) == "mine"
        assert group_of("mine").size() == 2


def test_one_axis_name_for_other_ranks():
    with fake_world(4):
        register_mesh(init_device_mesh("cpu", (4,), mesh_dim_names=("dp",)))
        other = init_device_mesh("cpu", (2, 2), mesh_dim_names=("up", "dp"))["dp"]
        with pytest.raises(ShardError) as caught:
            register_mesh(other)
        assert str(caught.value) == (
            "mesh axis 'dp' means ranks [0, 1] here and ranks [0, 1, 2, 3] in an earlier zc.shard; "
            "give the meshes different mesh_dim_names"
        )


def test_a_mesh_of_two_axes():
    with fake_world(4):
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
        with pytest.raises(ShardError) as caught:
            register_mesh(mesh)
        assert str(caught.value) == (
            "mesh has 2 axes ('a', 'b'); zc.shard takes a 1-D mesh: pass mesh['a'], or leave mesh "
            "out for the whole world"
        )
