"""Reads of a sharded module's parameters in functions that Dynamo traces."""

import pytest
import torch
from multiprocess import fake_world
from torch import nn
from torch.distributed.tensor import DTensor

from zc.errors import ShardError
from zc.state.reading import full
from zc.state.shard import shard


@pytest.fixture(autouse=True)
def world():
    with fake_world(2):
        yield


def compile_counting(model: nn.Module) -> tuple[nn.Module, list[int]]:
    markers: list[int] = []

    def count(graph_module, inputs):
        markers.append(sum("zc.param" in str(n.target) for n in graph_module.graph.nodes))
        return graph_module

    torch._dynamo.reset()
    return torch.compile(model, backend=count), markers


def test_one_compiled_frame_serves_equal_layers():
    layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(12))
    model = shard(layers)
    compiled, markers = compile_counting(model[0])
    compiled(torch.ones(2, 16))
    frame = torch.compile(lambda layer, x: layer(x), backend="eager", fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for layer in model:
            frame(layer, torch.ones(2, 16))
    assert markers == [2]


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # Dynamo's own reading
def test_reads_behind_a_graph_break_are_full():
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return uncompiled(self, self.a(x)) + self.b.bias

    @torch.compiler.disable
    def uncompiled(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x @ module.a.weight

    model = shard(Broken())
    compiled, markers = compile_counting(model)
    compiled(torch.ones(2, 16)).sum().backward()
    assert markers == [2, 1]
    assert isinstance(model.a.weight, DTensor)


MODELS = {
    "lstm": (lambda: nn.LSTM(16, 32, num_layers=2), 8),
    "gru": (lambda: nn.GRU(16, 32), 4),
    "attention": (lambda: nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0), 12),
    "dictionary": (lambda: nn.ModuleDict({"a": nn.Linear(16, 16)})["a"], 2),
}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_whole_modules_are_captured(name, train):
    build, parameters = MODELS[name]
    model = shard(build()).train(train)
    compiled, markers = compile_counting(model)
    with torch._dynamo.config.patch(allow_rnn=True):
        compiled(torch.ones(3, 2, 16))
    assert len(markers) == 1
    assert markers[0] >= parameters


def test_a_whole_step_is_one_graph():
    model = shard(nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16)))

    def step(x: torch.Tensor) -> torch.Tensor:
        loss = model(x).sum() + model[0].weight.square().sum()
        loss.backward()
        return loss.detach()

    compiled, markers = compile_counting(step)
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        for _ in range(3):
            compiled(torch.ones(2, 16))
            model.zero_grad()
    assert markers == [5]


def test_a_compiled_method_and_a_compiled_model_read_alike():
    class Root(nn.Module):  # torch leaves modules of its own uncompiled in model.compile()
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    model = shard(Root())
    _, markers = compile_counting(model)

    def count(graph_module, inputs):
        markers.append(sum("zc.param" in str(n.target) for n in graph_module.graph.nodes))
        return graph_module

    model.compile(backend=count)
    model(torch.ones(2, 16))
    assert markers == [2]
    assert isinstance(model.inner.weight, DTensor)


def test_full_inside_a_compiled_function():
    model = shard(nn.Linear(16, 64))

    def norm() -> torch.Tensor:
        with full(model):
            return model.weight.norm()

    compiled, markers = compile_counting(norm)
    assert compiled().shape == ()
    assert markers == [1]


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # torch's import
def test_compiled_optimizers_of_others_are_left_alone():
    shard(nn.Linear(16, 64))  # installs the check
    plain = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(plain.parameters())
    plain(torch.ones(4)).sum().backward()
    before = plain.bias.detach().clone()
    compiled, markers = compile_counting(optimizer.step)
    compiled()
    assert markers == [0]
    assert not torch.equal(plain.bias, before)


def test_compile_method_of_a_torch_class_is_refused() -> None:
    model = shard(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ShardError) as error:
        model.compile(backend="zero")
    assert str(error.value) == (
        "Sequential.compile() would compile nothing: Dynamo skips code inside torch.nn; "
        "write model = torch.compile(model, ...) instead"
    )
