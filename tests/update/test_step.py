"""``zc.step`` in a compiled function, on one process: what may change between steps."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from update import third_party
from update.step_pairs import Pair

import zc
from zc.program.kernels import FUSED_UPDATE


def test_the_learning_rate_changes_a_hundred_times(calls: list[str]):
    pair = Pair(torch.optim.AdamW, "step")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(100):
            for optimizer in pair.optimizers:
                optimizer.param_groups[0]["lr"] = 0.01 / (1 + i)
            pair.step()
    assert pair.difference() == 0.0
    assert calls.count("trace") == 1


@pytest.mark.parametrize("change", [{"weight_decay": 0.0}, {"amsgrad": True}, {"maximize": True}])
def test_settings_that_change_the_arithmetic(change: dict[str, Any], calls: list[str]):
    pair = Pair(lambda params: torch.optim.AdamW(params, amsgrad=False), "step")
    pair.step()
    if "amsgrad" in change:  # eager torch asks for this entry too
        for optimizer in pair.optimizers:
            for state in optimizer.state.values():
                state["max_exp_avg_sq"] = torch.zeros(5, 3)
    for optimizer in pair.optimizers:
        optimizer.param_groups[0].update(change)
    for _ in range(3):
        pair.step()
    assert pair.difference() == 0.0
    assert calls.count("trace") == 2


def test_going_back_to_a_trace_costs_nothing(calls: list[str]):
    pair = Pair(third_party.Lookahead, "step")
    for _ in range(9):
        pair.step()
    assert pair.difference() == 0.0
    assert calls.count("trace") == 2  # every third step goes another way


def test_one_launch_for_all_shapes():
    torch._dynamo.reset()
    params = [nn.Parameter(torch.ones(shape)) for shape in ((4, 3), (5,), (2, 2, 2))]
    optimizer = torch.optim.AdamW(params)
    for param in params:
        param.grad = torch.ones_like(param)
    program = zc.capture(lambda: zc.step(optimizer), passes="zero0")
    assert len(program.graph.find_nodes(op="call_function", target=FUSED_UPDATE)) == 1


def test_parameters_without_a_gradient_are_left_alone():
    pair = Pair(torch.optim.AdamW, "step")
    for skipped in ((), (0,), (), (1,), (0, 1), ()):
        pair.step(*skipped)
    assert pair.difference() == 0.0
    counts = [state["step"].item() for state in pair.optimizers[0].state.values()]
    assert counts == [4, 4]


def test_a_further_group():
    pair = Pair(lambda params: torch.optim.SGD(params[:1], lr=0.1, momentum=0.9), "step")
    pair.step(1)
    for optimizer, params in zip(pair.optimizers, (pair.ours, pair.theirs), strict=True):
        optimizer.add_param_group({"params": params[1:], "lr": 0.5})
    for _ in range(2):
        pair.step()
    assert pair.difference() == 0.0


def test_eager_and_compiled_steps_take_turns():
    pair = Pair(torch.optim.AdamW, "step")
    for i in range(6):
        pair.step()
        if i % 2:
            for param in (*pair.ours, *pair.theirs):
                param.grad = torch.ones(5, 3)
            pair.optimizers[0].step()
            pair.optimizers[1].step()
    assert pair.difference() == 0.0


@pytest.mark.parametrize("name", ["AdamW", "SGD", "NAdam", "Adafactor"])
def test_a_checkpoint_goes_from_eager_to_zc_and_back(name: str):
    settings = {"lr": 0.1, "momentum": 0.9} if name == "SGD" else {}

    def make(params: list[nn.Parameter]) -> torch.optim.Optimizer:
        return getattr(torch.optim, name)(params, **settings)

    pair = Pair(make, "step")
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


def test_a_step_goes_on_from_what_was_loaded():
    pair = Pair(torch.optim.AdamW, "step")
    pair.step()
    loaded = copy.deepcopy(pair.optimizers[1].state_dict())
    for entries in loaded["state"].values():
        entries["exp_avg"].fill_(100.0)
    for optimizer in pair.optimizers:
        optimizer.load_state_dict(copy.deepcopy(loaded))
    pair.step()
    assert pair.difference() == 0.0
    ours, theirs = (optimizer.state_dict() for optimizer in pair.optimizers)
    for key, entries in theirs["state"].items():
        assert all(torch.equal(ours["state"][key][k], v) for k, v in entries.items())


def test_a_scheduler_sees_the_steps():
    pair = Pair(torch.optim.AdamW, "step")
    rates = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in pair.optimizers]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            pair.step()
            for rate in rates:
                rate.step()
    assert pair.difference() == 0.0


def test_other_backends_run_the_optimizer_itself():
    torch._dynamo.reset()
    param, other = nn.Parameter(torch.ones(5, 3)), nn.Parameter(torch.ones(5, 3))
    optimizer = torch.optim.AdamW([param])
    param.grad, other.grad = torch.ones(5, 3), torch.ones(5, 3)
    torch.compile(lambda: zc.step(optimizer), backend="eager")()
    torch.optim.AdamW([other]).step()
    assert torch.equal(param, other)
    assert param.grad is None
