"""Every refusal of ``zc.shard`` and of sharded modules, word by word."""

import copy

import pytest
import torch
from multiprocess import fake_world
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize, prune

from zc.errors import ShardError
from zc.state.reading import full
from zc.state.shard import shard


@pytest.fixture(autouse=True)
def world():
    with fake_world(2):
        yield


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))


def refused(subject: nn.Module, message: str, **options: object) -> None:
    with pytest.raises(ShardError) as caught:
        shard(subject, **options)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_scripted():
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)

    holder = Holder()
    with pytest.warns(DeprecationWarning, match="torch.jit.script"):
        holder.inner = torch.jit.script(nn.Linear(2, 2))
    refused(holder, "module 'inner' is a scripted module; shard the module it was scripted from")


def test_compiled():
    refused(
        torch.compile(model(), backend="eager"),
        "the model is already compiled; call zc.shard before torch.compile",
    )


def test_wrapped():
    wrapped = nn.Sequential(DistributedDataParallel(model()))
    refused(
        wrapped,
        "module '0' is wrapped in DistributedDataParallel; zc.shard takes its place: pass the bare "
        "model",
    )


def test_old_weight_norm():
    subject = model()
    with pytest.warns(FutureWarning):
        torch.nn.utils.weight_norm(subject[0])
    refused(
        subject,
        "module '0' recomputes a weight in a WeightNorm hook; use "
        "torch.nn.utils.parametrizations.weight_norm instead",
    )


def test_old_spectral_norm():
    subject = model()
    torch.nn.utils.spectral_norm(subject[1])
    refused(
        subject,
        "module '1' recomputes a weight in a SpectralNorm hook; use "
        "torch.nn.utils.parametrizations.spectral_norm instead",
    )


def test_pruned():
    subject = model()
    prune.identity(subject[1], "weight")
    refused(
        subject,
        "module '1' recomputes a weight in a BasePruningMethod hook; use "
        "torch.nn.utils.prune.remove, which makes the pruning permanent instead",
    )


def test_lazy():
    subject = nn.Sequential(nn.LazyLinear(4))
    refused(subject, "'0.weight' is lazy and has no shape yet; run one batch before zc.shard")


def test_sharded_submodule():
    subject = model()
    shard(subject[0])
    refused(subject, "'0.weight' is already sharded by zc; call zc.shard once, on the whole model")


def test_sharded_twice_in_two_ways():
    subject = shard(model())
    assert shard(subject) is subject
    refused(
        subject,
        "'0.weight' is already sharded by zc; call zc.shard once, on the whole model",
        param_dtype=torch.bfloat16,
    )


def test_dtensor():
    subject = model()
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("dp",))
    subject[0].weight = nn.Parameter(DTensor.from_local(torch.zeros(4, 4), mesh, [Shard(0)]))
    refused(subject, "'0.weight' is already a DTensor; build the model from plain parameters")


def test_parameter_subclass():
    class Mine(nn.Parameter):
        pass

    subject = model()
    subject[0].weight = Mine(torch.zeros(8, 4))
    refused(
        subject,
        "'0.weight' is a Mine of layout torch.strided; only dense "
        "torch.nn.Parameter can be sharded",
    )


def test_gradient():
    subject = model()
    subject(torch.ones(1, 4)).sum().backward()
    refused(subject, "'0.weight' has a gradient, which would be lost; set it to None first")


def test_hooks():
    subject = model()
    subject[1].bias.register_hook(lambda grad: grad)
    refused(subject, "'1.bias' has hooks, which would be lost; register them after zc.shard")


def test_mixed_devices():
    subject = model()
    subject[1].to("meta")
    refused(
        subject,
        "'0.weight' is on cpu and '1.weight' on meta; move the model to one device before zc.shard",
    )


def test_shared_memory():
    subject = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    subject[1].weight.data = subject[0].weight.data
    refused(
        subject,
        "'0.weight' and '1.weight' share memory without being one parameter; tie them by assigning "
        "the same nn.Parameter to both",
    )


def test_dtype():
    refused(
        model(),
        "param_dtype=torch.int8 is no floating-point dtype; take torch.bfloat16",
        param_dtype=torch.int8,
    )


def test_mesh_of_two_axes():
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("a", "b"))
    refused(
        model(),
        "mesh has 2 axes ('a', 'b'); zc.shard takes a 1-D mesh: pass mesh['a'], or leave mesh out "
        "for the whole world",
        mesh=mesh,
    )


def test_a_rank_outside_the_mesh():
    mesh = DeviceMesh("cpu", [1], mesh_dim_names=("dp",))
    refused(
        model(),
        "rank 0 is not in the mesh [1]; call zc.shard on ranks of the mesh only",
        mesh=mesh,
    )


def test_mesh_of_another_device():
    mesh = init_device_mesh("meta", (2,), mesh_dim_names=("dp",))
    refused(model(), "the model is on cpu and the mesh on meta; move the model first", mesh=mesh)


def test_plain_parameter_in_place_of_a_shard():
    subject = shard(nn.Linear(4, 64))
    with pytest.raises(ShardError) as caught:
        subject.weight = nn.Parameter(torch.zeros(64, 4))
    assert str(caught.value) == (
        "'weight' is a DTensor [64, 4] cut along dim 0 over dp=2 and cannot become a Parameter "
        "[64, 4]; assign it before zc.shard, or copy values in with zc.load_full_state_dict"
    )


def test_full_tensor_in_a_state_dict():
    values = copy.deepcopy(model().state_dict())
    subject = shard(model())
    with pytest.raises(ShardError) as caught:
        subject.load_state_dict(values)
    assert str(caught.value) == (
        "'0.weight' is a full tensor in this state dict and a shard in the model; use "
        "zc.load_full_state_dict(model, state_dict)"
    )


def test_parametrizing_a_sharded_module():
    subject = shard(nn.Linear(4, 64))
    with pytest.raises(ShardError) as caught:
        parametrize.register_parametrization(subject, "weight", nn.Tanh())
    assert str(caught.value) == (
        "'ParametrizedLinear' cannot take the place of a class that zc.shard has swapped; "
        "parametrize or wrap the module before zc.shard"
    )


def test_full_of_an_unsharded_model():
    with pytest.raises(ShardError) as caught, full(model()):
        pass
    assert str(caught.value) == "zc.full(model) needs a sharded model; call zc.shard(model) first"
