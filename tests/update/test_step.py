"""``zc.step`` in a compiled function, on one process: what may change between steps."""

import copy
import re
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed
from update import third_party
from update.lockstep_update import SimulatedRanks

import zc
from zc.capture.updates import adopt_updates, settle_updates
from zc.errors import CaptureError, ExecutionError
from zc.program.kernels import FUSED_UPDATE
from zc.run.variants import Variants
from zc.state.step import UPDATE

PASSES = [{"shard_params": {"zero_stage": 0}}, "shard_update", "clean_graph"]
OPTIONS = {"passes": PASSES, "executor": "interpret"}


def compiled(optimizer: torch.optim.Optimizer) -> Any:
    """A function that steps ``optimizer`` from the gradients there are."""
    torch._dynamo.reset()
    return torch.compile(lambda: zc.step(optimizer), backend="zero", options=OPTIONS)


class Pair:
    """Parameters stepped by zc beside others stepped by torch."""

    def __init__(self, make: Any, count: int = 2) -> None:
        torch.manual_seed(0)
        self.ours = [nn.Parameter(torch.randn(5, 3)) for _ in range(count)]
        self.theirs = copy.deepcopy(self.ours)
        self.zc_optimizer, self.optimizer = make(self.ours), make(self.theirs)
        self.update = compiled(self.zc_optimizer)

    def step(self, *skipped: int) -> None:
        for index, (ours, theirs) in enumerate(zip(self.ours, self.theirs, strict=True)):
            grad = None if index in skipped else torch.randn(5, 3)
            ours.grad, theirs.grad = (None, None) if grad is None else (grad, grad.clone())
        self.optimizer.step()
        self.update()

    def alike(self) -> bool:
        return all(torch.equal(p, q) for p, q in zip(self.ours, self.theirs, strict=True))


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one at each trace of an optimizer."""
    found: list[int] = []
    trace = Variants.trace

    def counted(self: Variants) -> Any:
        found.append(1)
        return trace(self)

    monkeypatch.setattr(Variants, "trace", counted)
    return found


def test_the_learning_rate_changes_a_hundred_times(traces: list[int]):
    pair = Pair(torch.optim.AdamW)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(100):
            for optimizer in (pair.zc_optimizer, pair.optimizer):
                optimizer.param_groups[0]["lr"] = 0.01 / (1 + i)
            pair.step()
    assert pair.alike()
    assert len(traces) == 1


@pytest.mark.parametrize("change", [{"weight_decay": 0.0}, {"amsgrad": True}, {"maximize": True}])
def test_settings_that_change_the_arithmetic(change: dict[str, Any], traces: list[int]):
    pair = Pair(lambda params: torch.optim.AdamW(params, amsgrad=False))
    pair.step()
    if "amsgrad" in change:  # eager torch asks for this entry too
        for optimizer in (pair.zc_optimizer, pair.optimizer):
            for state in optimizer.state.values():
                state["max_exp_avg_sq"] = torch.zeros(5, 3)
    for optimizer in (pair.zc_optimizer, pair.optimizer):
        optimizer.param_groups[0].update(change)
    for _ in range(3):
        pair.step()
    assert pair.alike()
    assert len(traces) == 2


def test_going_back_to_a_trace_costs_nothing(traces: list[int]):
    pair = Pair(third_party.Lookahead)
    for _ in range(9):
        pair.step()
    assert pair.alike()
    assert len(traces) == 2  # every third step goes another way


def test_one_launch_for_all_shapes():
    torch._dynamo.reset()
    params = [nn.Parameter(torch.ones(shape)) for shape in ((4, 3), (5,), (2, 2, 2))]
    optimizer = torch.optim.AdamW(params)
    for param in params:
        param.grad = torch.ones_like(param)
    program = zc.capture(lambda: zc.step(optimizer), passes="zero0")
    assert len(program.graph.find_nodes(op="call_function", target=FUSED_UPDATE)) == 1


def test_parameters_without_a_gradient_are_left_alone():
    pair = Pair(torch.optim.AdamW)
    for skipped in ((), (0,), (), (1,), (0, 1), ()):
        pair.step(*skipped)
    assert pair.alike()
    counts = [state["step"].item() for state in pair.zc_optimizer.state.values()]
    assert counts == [4, 4]


def test_a_further_group():
    pair = Pair(lambda params: torch.optim.SGD(params[:1], lr=0.1, momentum=0.9))
    pair.step(1)
    for optimizer, params in ((pair.zc_optimizer, pair.ours), (pair.optimizer, pair.theirs)):
        optimizer.add_param_group({"params": params[1:], "lr": 0.5})
    for _ in range(2):
        pair.step()
    assert pair.alike()


def test_eager_and_compiled_steps_take_turns():
    pair = Pair(torch.optim.AdamW)
    for i in range(6):
        pair.step()
        if i % 2:
            for param in (*pair.ours, *pair.theirs):
                param.grad = torch.ones(5, 3)
            pair.zc_optimizer.step()
            pair.optimizer.step()
    assert pair.alike()


@pytest.mark.parametrize("name", ["AdamW", "SGD", "NAdam", "Adafactor"])
def test_a_checkpoint_goes_from_eager_to_zc_and_back(name: str):
    settings = {"lr": 0.1, "momentum": 0.9} if name == "SGD" else {}

    def make(params: list[nn.Parameter]) -> torch.optim.Optimizer:
        return getattr(torch.optim, name)(params, **settings)

    pair = Pair(make)
    for _ in range(3):
        pair.step()
    ours, theirs = pair.zc_optimizer.state_dict(), pair.optimizer.state_dict()
    for key, entries in theirs["state"].items():
        assert entries.keys() == ours["state"][key].keys()
    pair.zc_optimizer.load_state_dict(copy.deepcopy(theirs))
    pair.optimizer.load_state_dict(copy.deepcopy(ours))
    for _ in range(3):
        pair.step()
    assert pair.alike()


def test_a_step_goes_on_from_what_was_loaded():
    pair = Pair(torch.optim.AdamW)
    pair.step()
    loaded = copy.deepcopy(pair.optimizer.state_dict())
    for entries in loaded["state"].values():
        entries["exp_avg"].fill_(100.0)
    for optimizer in (pair.zc_optimizer, pair.optimizer):
        optimizer.load_state_dict(copy.deepcopy(loaded))
    pair.step()
    assert pair.alike()
    ours, theirs = pair.zc_optimizer.state_dict(), pair.optimizer.state_dict()
    for key, entries in theirs["state"].items():
        assert all(torch.equal(ours["state"][key][k], v) for k, v in entries.items())


def test_a_scheduler_sees_the_steps():
    pair = Pair(torch.optim.AdamW)
    rates = [
        torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in (pair.zc_optimizer, pair.optimizer)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            pair.step()
            for rate in rates:
                rate.step()
    assert pair.alike()


def test_other_backends_run_the_optimizer_itself():
    torch._dynamo.reset()
    param, other = nn.Parameter(torch.ones(5, 3)), nn.Parameter(torch.ones(5, 3))
    optimizer = torch.optim.AdamW([param])
    param.grad, other.grad = torch.ones(5, 3), torch.ones(5, 3)
    torch.compile(lambda: zc.step(optimizer), backend="eager")()
    torch.optim.AdamW([other]).step()
    assert torch.equal(param, other)
    assert param.grad is None


class OwnCounter(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        self.count = getattr(self, "count", 0) + 1
        for param in self.param_groups[0]["params"]:
            param.data.add_(param.grad, alpha=-self.count)


class Noisy(torch.optim.SGD):
    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for param in self.param_groups[0]["params"]:
            param.add_(torch.randn_like(param))


class Listing(torch.optim.SGD):
    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for param in self.param_groups[0]["params"]:
            self.state[param].setdefault("history", []).append(param.grad)


class Outside(torch.optim.SGD):
    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.elsewhere = torch.ones(3)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for param in self.param_groups[0]["params"]:
            param.add_(self.elsewhere)


class Branching(torch.optim.SGD):
    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for param in self.param_groups[0]["params"]:
            for row in range(8):
                if param.grad[0].item() > row:
                    param.add_(row)


class Float(torch.optim.SGD):
    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for param in self.param_groups[0]["params"]:
            param.mul_(float(param.grad.norm().item()))


REFUSED: dict[str, tuple[Any, str]] = {
    "closure": (
        torch.optim.LBFGS,
        "LBFGS.step needs 'closure', which a compiled step cannot give it; call LBFGS.step outside "
        "the compiled function",
    ),
    "own counter": (
        OwnCounter,
        "OwnCounter.step sets its attribute 'count'; keep what changes between steps in "
        "optimizer.state or in param_groups",
    ),
    "random": (
        Noisy,
        "the optimizer draws random numbers (aten.randn_like.default), which zc cannot yet",
    ),
    "list": (
        Listing,
        "Listing keeps a list in state['history'], which zc cannot carry from step to step; keep "
        "tensors and numbers there",
    ),
    "outside": (
        Outside,
        "the optimizer reads a tensor of shape [3] that is neither a parameter, a gradient nor in "
        "optimizer.state; keep it in optimizer.state",
    ),
    "many branches": (
        Branching,
        "Branching.step branches on data in more than 64 ways, at test_step.py:LINE; write the "
        "branch as torch.where",
    ),
    "float": (
        Float,
        "test_step.py:LINE: a number computed from tensors is needed as a Python float; keep it a "
        "tensor, or use it in arithmetic only",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_compiled_is_refused(name: str):
    make, message = REFUSED[name]
    param = nn.Parameter(torch.ones(3))
    optimizer = make([param])
    param.grad = torch.ones(3)
    with pytest.raises(BackendCompilerFailed) as error:
        compiled(optimizer)()
    inner = error.value.inner_exception
    assert isinstance(inner, CaptureError)
    assert re.sub(r"\S*/(test_step.py):\d+", r"\1:LINE", str(inner)) == message


def test_an_optimizer_that_changes_its_mind_at_every_step():
    """A number that is baked in at each step would be traced for ever."""

    class Baked(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            for param in self.param_groups[0]["params"]:
                self.state[param].setdefault("count", 0)
                self.state[param]["count"] += 1
                param.add_(torch.full_like(param, [1.0, 2.0][int(self.state[param]["count"]) % 2]))

    param = nn.Parameter(torch.ones(3))
    update = compiled(Baked([param]))
    message = (
        r"the optimizer has been traced 16 times, .*: \S*test_step.py:\d+; keep them in tensors"
    )

    def train(steps: int) -> None:
        for _ in range(steps):
            param.grad = torch.ones(3)
            update()

    with pytest.raises(ExecutionError, match=message):
        train(20)


def test_one_parameter_two_optimizers():
    program, _ = SimulatedRanks(1, [torch.ones(3)], torch.optim.SGD).logical()
    marker = program.graph.find_nodes(op="call_function", target=UPDATE)[0]
    with program.graph.inserting_after(marker):
        program.graph.call_function(UPDATE, marker.args)
    with pytest.raises(CaptureError) as error:
        adopt_updates(program)
    assert str(error.value) == (
        "two optimizers of step step 'p0' in one program; give each parameter to one optimizer"
    )


def test_a_tensor_that_is_no_parameter():
    program, _ = SimulatedRanks(1, [torch.ones(3)], torch.optim.SGD).logical()
    marker = program.graph.find_nodes(op="call_function", target=UPDATE)[0]
    marker.args = ([marker.args[1][0]], marker.args[1], 0)
    with pytest.raises(CaptureError) as error:
        settle_updates(program)
    assert str(error.value) == (
        "zc.step updates a tensor of shape [3] that is no parameter of a module; build the "
        "optimizer from model.parameters()"
    )
