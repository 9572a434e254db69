"""What reading, writing and copying a sharded module's attributes gives."""

import copy
import io

import pytest
import torch
from multiprocess import fake_world
from torch import nn
from torch.distributed.tensor import DTensor

from zc.comm.wire import METER
from zc.state.modules import sharded_class
from zc.state.reading import full
from zc.state.shard import shard
from zc.state.spec import spec_of

SHAPE = (64, 16)


@pytest.fixture(autouse=True)
def world():
    with fake_world(2):
        yield


def linear() -> nn.Module:
    return shard(nn.Linear(16, 64))


def gathered() -> int:
    return METER.sent.get("all_gather", 0)


def test_a_read_gives_the_shard_outside_and_the_whole_inside():
    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(16, 64)

        def forward(self) -> torch.Tensor:
            return self.inner.weight

    spy = shard(Spy())
    assert isinstance(spy.inner.weight, DTensor)
    assert spy.inner.weight.to_local().shape == (32, 16)
    whole = spy()
    assert type(whole) is torch.Tensor
    assert whole.shape == SHAPE


def test_reads_give_shards_again_after_an_exception():
    class Failing(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("no")

    module = shard(Failing(16, 64))
    with pytest.raises(ValueError, match="no"):
        module(torch.ones(16))
    assert isinstance(module.weight, DTensor)


def test_full_gathers_each_parameter_once_until_it_changes():
    module = linear()
    with torch.no_grad(), full(module):
        before = gathered()
        first = module.weight
        once = gathered() - before
        assert module.weight is first
        module(torch.ones(16))
        bias = 64 * 4 // 2
        assert gathered() - before == once + bias
        module._parameters["weight"].to_local().add_(1)
        assert module.weight is not first
        with full(module):
            assert type(module.weight) is torch.Tensor
        assert type(module.weight) is torch.Tensor
    assert isinstance(module.weight, DTensor)


def test_a_full_read_is_differentiable():
    module = linear()
    with full(module):
        (module.weight.sum() + module.weight.square().sum()).backward()
    assert isinstance(module.weight.grad, DTensor)


def test_classes_are_shared_and_look_like_their_originals():
    model = shard(nn.Sequential(nn.Linear(16, 64), nn.Linear(64, 16), nn.ReLU()))
    assert type(model[0]) is type(model[1])
    assert type(model[0]) is sharded_class(nn.Linear, ("weight", "bias"))
    assert isinstance(model[0], nn.Linear)
    assert repr(model[0]) == "Linear(in_features=16, out_features=64, bias=True)"
    assert type(model[2]) is nn.ReLU


def test_assigning_and_deleting():
    module, other = linear(), linear()
    module.weight = other.weight
    assert module.weight is other.weight
    module.bias = None
    assert module.bias is None
    assert module(torch.ones(2, 16)).shape == (2, 64)
    del module.weight
    assert not hasattr(module, "weight")
    module.weight = torch.ones(64, 16)  # a plain attribute, as after deleting in any module
    assert type(module.weight) is torch.Tensor
    del module.weight
    with pytest.raises(AttributeError, match="'Linear' object has no attribute 'weight'"):
        module.weight  # noqa: B018


def test_an_unpadded_parameter_is_padded_when_assigned():
    module = shard(nn.Linear(7, 5))
    local = module.weight.to_local().detach().clone()
    module.weight = nn.Parameter(
        DTensor.from_local(
            local, module.weight.device_mesh, module.weight.placements,
            shape=torch.Size((5, 7)), stride=(7, 1),
        )
    )  # fmt: skip
    assert module.weight.to_local().untyped_storage().nbytes() == 32 * 4


def test_deepcopy_keeps_values_specs_and_ties():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[1].weight = model[0].weight
    copied = copy.deepcopy(shard(model))
    assert copied[1].weight is copied[0].weight
    assert copied[0].weight is not model[0].weight
    assert spec_of(copied[0].weight) == spec_of(model[0].weight)
    assert torch.equal(copied[0].weight.to_local(), model[0].weight.to_local())
    assert copied(torch.ones(16)).shape == (16,)


def test_the_spec_names_ties_and_shared_modules():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Identity())
    model[1].weight = model[0].weight
    model[2].again = model[1]
    shard(model)
    weight, bias = spec_of(model[0].weight), spec_of(model[1].bias)
    assert weight is not None
    assert bias is not None
    assert (weight.name, weight.ties) == ("0.weight", ("1.weight", "2.again.weight"))
    assert bias.names == ("1.bias", "2.again.bias")
    assert model[1].weight is model[0].weight


def test_casting_and_moving_keep_padding_specs_and_identity():
    model = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 7))
    model[0].weight.decay = 0.5
    shard(model)
    optimizer = torch.optim.SGD(model.parameters())
    weight = model[0].weight
    model.to(torch.bfloat16)
    assert model[0].weight is weight is optimizer.param_groups[0]["params"][0]
    assert weight.dtype == torch.bfloat16
    assert weight.to_local().untyped_storage().nbytes() == 32 * 2
    assert spec_of(weight) is not None
    assert weight.decay == 0.5
    assert model(torch.ones(7, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_compute_dtype_stays_when_shards_are_cast():
    module = shard(nn.Linear(16, 64), param_dtype=torch.float16).to(torch.bfloat16)
    assert module(torch.ones(16, dtype=torch.float16)).dtype == torch.float16


def test_compute_and_reduce_dtypes():
    module = shard(nn.Linear(16, 64), param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    before = METER.total()
    output = module(torch.ones(16, dtype=torch.bfloat16))
    assert METER.total() - before == (64 * 16 + 64) * 2 // 2
    before = METER.total()
    output.sum().backward()
    assert METER.total() - before == (64 * 16 + 64) * 4 // 2
    assert module.weight.dtype == module.weight.grad.dtype == torch.float32


def test_recurrent_modules_keep_no_full_weights():
    module = shard(nn.LSTM(16, 32))
    assert "_flat_weights" not in module.__dict__
    assert all(isinstance(w, DTensor) for w in module._flat_weights)
    assert module.double()(torch.ones(3, 16, dtype=torch.float64))[0].dtype == torch.float64


def test_integers_are_never_cast():
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.arange(64), requires_grad=False)

        def forward(self) -> torch.Tensor:
            return self.table

    assert shard(Table(), param_dtype=torch.bfloat16)().dtype == torch.int64


def test_a_state_dict_can_be_pickled():
    model = linear()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded["weight"].to_local(), model.weight.to_local())
