"""``torch.compile(optimizer.step, backend="zero")`` and ``zc.compile_step`` beside eager steps."""

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from update.optimizers import ELEMENTWISE, WHOLE, Make, of

import zc
import zc.optimizer_step
from zc import torch_private
from zc.errors import CaptureError, ShardError
from zc.lowered_step import LoweredStep
from zc.run.variants import Variants

PASSES = [{"shard_params": {"zero_stage": 0}}, "shard_update", "clean_graph"]
OPTIONS: dict[str, Any] = {"passes": PASSES, "executor": "interpret"}
WAYS: dict[str, Callable[[Any], Any]] = {
    "compile": lambda o: torch.compile(o.step, backend="zero", options=OPTIONS),
    "compile_step": lambda o: zc.compile_step(o, OPTIONS),
}
OPTIMIZERS: dict[str, Make] = (
    ELEMENTWISE
    | WHOLE
    | {"adamw fused": of("AdamW", fused=True), "adam foreach": of("Adam", foreach=True)}
)
FUSED_ROUNDING = 1e-6  # torch's fused AdamW rounds otherwise than its formula


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What zc does: ``step`` for a call, ``trace`` of the optimizer, ``frame`` taken over."""
    found: list[str] = []

    def note(owner: Any, name: str, word: str) -> None:
        original = getattr(owner, name)

        def noted(*args: Any) -> Any:
            found.append(word)
            return original(*args)

        monkeypatch.setattr(owner, name, noted)

    note(LoweredStep, "__call__", "step")
    note(Variants, "trace", "trace")
    note(torch_private, "replace_frame", "frame")
    return found


class Pair:
    """Parameters stepped by zc beside others stepped by torch, with equal gradients."""

    def __init__(self, make: Make, way: str = "compile") -> None:
        torch.manual_seed(0)
        self.ours = [nn.Parameter(torch.randn(5, 3)) for _ in range(2)]
        self.theirs = copy.deepcopy(self.ours)
        self.optimizers = (make(self.ours), make(self.theirs))
        self.update = WAYS[way](self.optimizers[0])

    def grads(self, *skipped: int) -> None:
        for index, (ours, theirs) in enumerate(zip(self.ours, self.theirs, strict=True)):
            grad = None if index in skipped else torch.randn(5, 3)
            ours.grad, theirs.grad = grad, None if grad is None else grad.clone()

    def step(self, *skipped: int) -> None:
        self.grads(*skipped)
        self.update()
        self.optimizers[1].step()

    def difference(self) -> float:
        pairs = zip(self.ours, self.theirs, strict=True)
        return max((p - q).abs().max().item() for p, q in pairs)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_equals_itself(name: str, calls: list[str]):
    pair = Pair(OPTIMIZERS[name])
    for i in range(4):
        for optimizer in pair.optimizers:
            optimizer.param_groups[0]["lr"] *= 1 / (1 + i)
        pair.step()
    assert pair.difference() <= (FUSED_ROUNDING if name == "adamw fused" else 0.0)
    assert calls.count("step") == 4


@pytest.mark.parametrize("way", WAYS)
def test_the_learning_rate_changes_a_hundred_times(way: str, calls: list[str]):
    pair = Pair(torch.optim.AdamW, way)
    for i in range(100):
        for optimizer in pair.optimizers:
            group = optimizer.param_groups[0]
            group["lr"], group["betas"] = 0.01 / (1 + i), (0.9 - 0.001 * i, 0.99)
        pair.step()
    assert pair.difference() == 0.0
    assert calls.count("step") == 100
    assert calls.count("trace") == 1
    assert calls.count("frame") <= 2


@pytest.mark.parametrize("way", WAYS)
def test_gradients_may_be_missing_and_stay_as_they_are(way: str, calls: list[str]):
    pair = Pair(torch.optim.AdamW, way)
    for skipped in ((0, 1), (), (0,), (1,), (0,), ()):
        pair.step(*skipped)
        given = [param.grad for param in pair.ours]
        assert [grad is None for grad in given] == [i in skipped for i in range(2)]
        assert all(
            p.grad is None or torch.equal(p.grad, q.grad)  # type: ignore[arg-type]
            for p, q in zip(pair.ours, pair.theirs, strict=True)
        )
    assert pair.difference() == 0.0
    assert calls.count("trace") == 4  # one set of parameters each, and unequal step counts


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Adafactor"])
def test_a_checkpoint_goes_from_eager_to_zc_and_back(name: str):
    pair = Pair(of(name, lr=0.1, **({"momentum": 0.9} if name == "SGD" else {})))
    for _ in range(3):
        pair.step()
    ours, theirs = (optimizer.state_dict() for optimizer in pair.optimizers)
    for key, entries in theirs["state"].items():
        assert entries.keys() == ours["state"][key].keys()
    pair.optimizers[0].load_state_dict(copy.deepcopy(theirs))
    pair.optimizers[1].load_state_dict(copy.deepcopy(ours))
    for _ in range(3):
        pair.step()
    assert pair.difference() == 0.0


def test_a_further_group_and_another_parameter():
    pair = Pair(lambda params: torch.optim.SGD(params[:1], lr=0.1, momentum=0.9))
    pair.step(1)
    for optimizer, params in zip(pair.optimizers, (pair.ours, pair.theirs), strict=True):
        optimizer.add_param_group({"params": params[1:], "lr": 0.5})
    pair.step()
    for optimizer, params in zip(pair.optimizers, (pair.ours, pair.theirs), strict=True):
        params[0] = optimizer.param_groups[0]["params"][0] = nn.Parameter(torch.ones(5, 3))
    pair.step()
    assert pair.difference() == 0.0


@pytest.mark.parametrize(
    ("way", "first"),  # a scheduler wraps a method, which torch.compile does not return
    [("compile", "scheduler"), ("compile_step", "scheduler"), ("compile_step", "step")],
)
def test_schedulers_and_the_step_in_its_place(way: str, first: str, calls: list[str]):
    pair = Pair(torch.optim.AdamW, way)
    rates: list[Any] = []

    def schedule() -> None:
        rates.extend(torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in pair.optimizers)

    if first == "scheduler":
        schedule()
    pair.optimizers[0].step = WAYS[way](pair.optimizers[0])
    if first == "step":
        schedule()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            pair.grads()
            for optimizer in pair.optimizers:
                optimizer.step()
            for rate in rates:
                rate.step()
    assert pair.difference() == 0.0
    assert calls.count("step") == 3


@pytest.mark.parametrize("way", WAYS)
def test_a_gradient_scaler(way: str, calls: list[str]):
    pair = Pair(torch.optim.AdamW, way)
    pair.optimizers[0].step = pair.update
    scalers = [torch.amp.GradScaler("cpu", init_scale=4.0) for _ in range(2)]
    for i in range(4):
        sides = zip(pair.optimizers, (pair.ours, pair.theirs), scalers, strict=True)
        for optimizer, params, scaler in sides:
            optimizer.zero_grad()
            loss = params[0].square().sum() + params[1].sum()
            scaler.scale(loss * (float("inf") if i == 1 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
    assert pair.difference() == 0.0
    assert [scaler.get_scale() for scaler in scalers] == [2.0, 2.0]
    assert calls.count("step") == 3


def closure_of(params: list[nn.Parameter]) -> Callable[[], torch.Tensor]:
    def closure() -> torch.Tensor:
        loss = params[0].square().sum() + params[1].square().sum()
        for param, grad in zip(params, torch.autograd.grad(loss, params), strict=True):
            param.grad = grad
        return loss

    return closure


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["AdamW", "LBFGS"])
def test_a_closure_makes_it_the_step_of_torch(name: str, way: str, calls: list[str]):
    pair = Pair(of(name, lr=0.1), way)
    for _ in range(2):
        found = pair.update(closure_of(pair.ours))
        assert torch.equal(found, pair.optimizers[1].step(closure_of(pair.theirs)))
    if name == "AdamW":
        assert calls.count("step") == 0
        pair.update(closure=None)
        pair.optimizers[1].step(None)
        assert calls.count("step") == 1
    assert pair.difference() == 0.0


@pytest.mark.parametrize("way", WAYS)
def test_hooks_are_called_as_ever(way: str):
    pair = Pair(torch.optim.SGD, way)
    order: list[str] = []
    for side, optimizer in zip("ab", pair.optimizers, strict=True):

        def halve(optimizer: Any, *_: Any, side: str = side) -> None:
            order.append(f"{side} before")
            for param in optimizer.param_groups[0]["params"]:
                param.grad.mul_(0.5)

        optimizer.register_step_pre_hook(halve)
        optimizer.register_step_post_hook(lambda *_, side=side: order.append(f"{side} after"))
    for _ in range(2):
        pair.step()
    assert pair.difference() == 0.0
    assert order == ["a before", "a after", "b before", "b after"] * 2


class Doubling(torch.optim.SGD):
    """Steps twice through its parent."""

    def step(self, closure: Any = None) -> Any:
        super().step()
        return super().step(closure)


@pytest.mark.parametrize("way", WAYS)
def test_a_step_that_calls_its_parents(way: str):
    torch.optim.SGD([nn.Parameter(torch.ones(1))])  # wraps the parent's step
    pair = Pair(Doubling, way)
    for _ in range(2):
        pair.step()
    assert pair.difference() == 0.0


def test_eager_steps_and_two_optimizers_of_one_class(calls: list[str]):
    first, second = Pair(torch.optim.AdamW), Pair(of("AdamW", lr=0.1))
    for i in range(4):
        for pair in (first, second):
            pair.step()
            if i % 2:
                for optimizer in pair.optimizers:
                    optimizer.step()
    assert first.difference() == second.difference() == 0.0
    assert calls.count("step") == 8


def test_other_backends_compile_as_before(calls: list[str]):
    pair = Pair(torch.optim.SGD)
    pair.step()
    compiles: list[Any] = []

    def backend(module: Any, inputs: Any) -> Any:
        compiles.append(module)
        return module.forward

    update = torch.compile(pair.optimizers[0].step, backend=backend)
    for _ in range(2):
        pair.grads()
        update()
        pair.optimizers[1].step()
    pair.step()
    assert pair.difference() == 0.0
    assert len(compiles) == 1
    assert calls.count("step") == 2


def test_a_step_that_dynamo_has_given_up_on_says_so_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(zc.optimizer_step, "_warned", set())
    replace = torch_private.replace_frame
    monkeypatch.setattr(torch_private, "replace_frame", lambda call: replace(None))
    pair = Pair(torch.optim.SGD)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            pair.step()
    assert pair.difference() == 0.0
    assert [str(w.message) for w in caught if "zc" in str(w.message)] == [
        "SGD.step runs as it is written: Dynamo has given up on it before zc could take it over; "
        "write optimizer.step = zc.compile_step(optimizer)"
    ]


def test_the_program_of_a_step(golden: Any):
    param = nn.Parameter(torch.ones(5, 3))
    param.grad = torch.ones(5, 3)
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.ones(2))]}, {"params": [param]}])
    golden(str(zc.capture(zc.compile_step(optimizer, OPTIONS))))


def refusal_of(optimizer: Any, way: str) -> str:
    with pytest.raises(CaptureError) as error:
        WAYS[way](optimizer)()
    return str(error.value)


@pytest.mark.parametrize("way", WAYS)
def test_sparse_gradients_are_refused(way: str):
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    assert refusal_of(torch.optim.SGD(embedding.parameters()), way) == (
        "'group0.param0' has a gradient of layout torch.sparse_coo, which SGD.step cannot be "
        "compiled for; make it dense, or call SGD.step uncompiled"
    )


@pytest.mark.parametrize("way", WAYS)
def test_unscaling_inside_the_step_is_refused(way: str):
    pair = Pair(of("AdamW", fused=True), way)
    pair.optimizers[0].step = pair.update
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(pair.ours[0].sum()).backward()
    with pytest.raises(CaptureError) as error:
        scaler.step(pair.optimizers[0])
    assert str(error.value) == (
        "torch.amp.GradScaler leaves it to AdamW(fused=True) to unscale gradients, which a "
        "compiled step does not; build AdamW without fused=True"
    )


def test_a_gradient_that_lies_elsewhere_is_refused():
    from multiprocess import fake_world

    with fake_world(2):
        model = zc.shard(nn.Linear(4, 8, bias=False))
        param: Any = model.weight
        assert isinstance(param, DTensor)
        param.grad = distribute_tensor(torch.ones(8, 4), param.device_mesh, [Replicate()])
        optimizer = torch.optim.SGD(model.parameters())
        with pytest.raises(CaptureError) as error:
            zc.compile_step(optimizer)()
    assert str(error.value) == (
        f"'weight' lies as {(Shard(0),)} and its gradient as {(Replicate(),)}; redistribute the "
        "gradient as its parameter lies"
    )


def test_an_optimizer_from_before_shard_is_refused():
    from multiprocess import fake_world

    with fake_world(2):
        model = nn.Linear(4, 8)
        optimizer = torch.optim.SGD(model.parameters())
        zc.shard(model)
        with pytest.raises(ShardError) as error:
            zc.compile_step(optimizer)
    assert str(error.value) == (
        "SGD holds 'weight' as it was before zc.shard and would train nothing; build the optimizer "
        "after zc.shard and zc.materialize"
    )


def test_what_cannot_be_traced_is_refused_by_name():
    class Noisy(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            for param in self.param_groups[0]["params"]:
                param.add_(torch.randn_like(param))

    pair = Pair(Noisy)
    pair.grads()
    with pytest.raises(CaptureError, match=r"the optimizer draws random numbers \(aten.randn_like"):
        pair.update()
