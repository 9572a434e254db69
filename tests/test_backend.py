"""The backend on one process: it equals eager PyTorch, and says what it cannot do."""

import copy
import warnings
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from capture.training import (
    OPTIONS,
    Net,
    batch,
    compiled,
    forward_and_backward,
    new_net,
    refusal_of,
    train,
)
from torch import nn

import zc
import zc.backend
import zc.run.compile
from zc import torch_private
from zc.comm.wire import METER

ALONE = {"passes": "zero3", "executor": "interpret"}
pytestmark = pytest.mark.usefixtures("fresh_compiler")


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("sharded", [True, False])
def test_one_process_equals_eager(level: int, sharded: bool):
    METER.reset()
    model, plain = new_net(), new_net()
    if sharded:
        zc.shard(model)
    losses = train(model, compiled(model, level), 0)
    assert losses == train(plain, forward_and_backward(plain), 0)
    for found, expected in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(found, expected)
    assert METER.total() == 0


@pytest.mark.parametrize("passes", ["zero0", "zero1", "zero2", None])
def test_every_pass_pipeline_runs_on_one_process(passes: str | None):
    model, plain = new_net(), new_net()
    options: dict[str, Any] = {"executor": "interpret"}
    step = compiled(model, 2, options=options | ({"passes": passes} if passes else {}))
    assert train(model, step, 0) == train(plain, forward_and_backward(plain), 0)


def test_buffers_are_updated():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    plain = copy.deepcopy(model)
    x = torch.randn(8, 4)
    step = torch.compile(model, backend="zero", options=ALONE)
    for net in (step, plain):
        for _ in range(2):
            net(x).sum().backward()
    assert model[1].num_batches_tracked == 2
    for found, expected in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.equal(found, expected)


def test_inference_and_no_grad():
    model = new_net().eval()
    call = torch.compile(model, backend="zero", options=ALONE)
    with torch.no_grad():
        assert torch.equal(call(batch(0, 0)), model(batch(0, 0)))


def test_the_backend_is_found_by_its_name():
    """``torch.compile(backend="zero")`` needs no import of zc: torch loads the entry point."""
    (entry,) = (e for e in entry_points(group="torch_dynamo_backends") if e.name == "zero")
    assert entry.load() is zc.backend.zero
    assert "zero" in torch.compiler.list_backends()


def test_options_are_checked_when_compiling():
    call = torch.compile(new_net(), backend="zero", options={"pases": "zero3"})
    assert refusal_of(lambda: call(batch(0, 0))) == (
        "PipelineError: options: no option named 'pases'; did you mean 'passes'?"
    )


def test_a_parameter_on_meta_is_refused():
    with torch.device("meta"):
        model = zc.shard(Net())
    call = torch.compile(model, backend="zero", options=OPTIONS)
    x = torch.empty(3, 5, dtype=torch.long, device="meta")
    assert refusal_of(lambda: call(x)) == (
        "ExecutionError: parameter 'embed.weight' is still on the meta device; call "
        "zc.materialize(model, device) and initialise or load it before the first step"
    )


def test_checkpointed_dropout_in_a_whole_step_is_refused():
    step = compiled(new_net(dropout=0.2, checkpointed=True), 2, options={"executor": "interpret"})
    assert refusal_of(lambda: step(batch(0, 0))) == (
        "CaptureError: torch cannot recompute dropout inside torch.utils.checkpoint when "
        "backward() is called in the compiled function; compile the model instead (level 1), or "
        "take the dropout or the checkpoint out"
    )


@pytest.mark.parametrize("version", ["2.10.0", "2.16.0+cpu", "3.0.1"])
def test_an_unsupported_torch_is_refused(version: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(zc.CaptureError) as error:
        torch_private.check_version()
    assert str(error.value) == f"torch {version} is not supported; install torch 2.11 to 2.15"


def test_without_a_compiler_programs_are_interpreted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch_private, "has_cpp_compiler", lambda: False)
    monkeypatch.setattr(zc.run.compile, "_warned", False)
    model, plain = new_net(), new_net()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step = compiled(model, 1, options={"executor": "inductor"})
        assert train(model, step, 0) == train(plain, forward_and_backward(plain), 0)
    assert [str(w.message) for w in caught if "compiler" in str(w.message)] == [
        "no C++ compiler found: zc runs programs node by node (executor: interpret); install g++ "
        "or clang++ for compiled regions"
    ]


def test_without_a_compiler_updates_run_op_by_op(monkeypatch: pytest.MonkeyPatch):
    """The whole step, lowered update included, with one message for both."""
    monkeypatch.setattr(torch_private, "has_cpp_compiler", lambda: False)
    monkeypatch.setattr(zc.run.compile, "_warned", False)
    torch._dynamo.reset()
    layer = torch.nn.Linear(3, 2)
    other = copy.deepcopy(layer)
    optimizer, reference = (torch.optim.SGD(m.parameters(), lr=0.5) for m in (layer, other))

    @torch.compile(backend="zero", options={"passes": "zero0"})
    def step(x: torch.Tensor) -> torch.Tensor:
        loss = layer(x).square().sum()
        loss.backward()
        zc.step(optimizer)
        return loss.detach()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step(torch.ones(1, 3))
    other(torch.ones(1, 3)).square().sum().backward()
    reference.step()
    assert torch.equal(layer.weight, other.weight)
    assert sum("compiler" in str(w.message) for w in caught) == 1


def by_a_helper(loss_of: Callable[..., torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return loss_of(x)


def in_a_loop(loss_of: Callable[..., torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    losses = [loss_of(part) for part in x.chunk(2)]
    return losses[0] + losses[1]


def guarded(loss_of: Callable[..., torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    try:
        return loss_of(x)
    finally:
        loss_of = by_a_helper


@pytest.mark.parametrize("way", [by_a_helper, in_a_loop, guarded])
def test_a_step_that_begins_with_its_backward_is_one_program(
    way: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
):
    """No tensor op comes before the call that ends in ``backward()``: no graph would end there."""
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    names: list[str] = []
    whole = zc.backend.Compilation.whole
    monkeypatch.setattr(
        zc.backend.Compilation,
        "whole",
        lambda self, *args: (names.append(self._name), whole(self, *args))[1],
    )

    def step_of(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

        def loss_of(x: torch.Tensor) -> torch.Tensor:
            loss = model(x).square().sum()
            loss.backward()
            return loss.detach()

        def step(x: torch.Tensor) -> torch.Tensor:
            loss = way(loss_of, x)
            zc.step(optimizer)
            return loss

        return step

    run = torch.compile(step_of(ours), backend="zero", options={"executor": "interpret"})
    for _ in range(2):
        x = torch.randn(4, 3)
        assert torch.equal(run(x), step_of(theirs)(x))
        assert torch.equal(ours.weight, theirs.weight)
    assert [name.rpartition(".")[2] for name in names] == ["step"]


def test_a_step_under_a_default_device():
    torch._dynamo.reset()
    layer = torch.nn.Linear(3, 2)

    @torch.compile(backend="zero", options={"passes": "zero0", "executor": "interpret"})
    def step(x: torch.Tensor) -> torch.Tensor:
        loss = layer(x).square().sum()
        loss.backward()
        return loss.detach()

    torch.set_default_device("cpu")
    try:
        with pytest.warns(UserWarning, match="compiled apart") as caught:
            step(torch.ones(1, 3))
    finally:
        torch.set_default_device(None)
    assert layer.weight.grad is not None
    (message,) = [str(w.message) for w in caught if "compiled apart" in str(w.message)]
    name, _, rest = message.partition(" calls ")
    assert name.endswith("test_a_step_under_a_default_device.<locals>.step")
    assert rest == (
        "backward() under torch.set_default_device or torch.device, where Dynamo cannot trace it, "
        "so forward and backward are compiled apart (level 1); call the step without: "
        "torch.set_default_device(None)"
    )


def test_a_half_without_its_joint_graph():
    compilation = zc.backend.Compilation.__new__(zc.backend.Compilation)
    compilation._program, compilation._name = None, "model.py:1 forward"
    with pytest.raises(zc.ZcError) as error:
        compilation.forward(torch.fx.GraphModule({}, torch.fx.Graph()), [])
    assert str(error.value) == ("forward half of model.py:1 forward arrived before its joint graph")


def test_pieces_around_a_graph_break_have_names(tmp_path: Path):
    model = new_net(breaks=True)
    step = compiled(model, 1, options=ALONE | {"passes": "zero0", "dump": str(tmp_path)})
    step(batch(0, 0))
    first = [path.read_text().splitlines()[0] for path in tmp_path.glob("*/00-capture.ir")]
    lines = model.forward.__func__.__code__.co_firstlineno  # type: ignore[attr-defined]
    assert sorted(first) == [
        f"program training.py:{lines} Net.forward (one process)",
        f"program training.py:{lines + 3} forward (resumed) (one process)",
    ]
