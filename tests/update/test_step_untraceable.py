"""``zc.step`` of optimizers that cannot be traced, and markers that mean nothing."""

import re
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed
from update.lockstep_update import SimulatedRanks
from update.step_pairs import WAYS

from zc.capture.updates import adopt_updates, settle_updates
from zc.errors import CaptureError, ExecutionError
from zc.state.step import UPDATE


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
        "Branching.step branches on data in more than 64 ways, at test_step_untraceable.py:LINE; "
        "write the branch as torch.where",
    ),
    "float": (
        Float,
        "test_step_untraceable.py:LINE: a number computed from tensors is needed as a Python "
        "float; keep it a tensor, or use it in arithmetic only",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_compiled_is_refused(name: str):
    make, message = REFUSED[name]
    param = nn.Parameter(torch.ones(3))
    optimizer = make([param])
    param.grad = torch.ones(3)
    with pytest.raises(BackendCompilerFailed) as error:
        WAYS["step"](optimizer)()
    inner = error.value.inner_exception
    assert isinstance(inner, CaptureError)
    assert re.sub(r"\S*/(test_step_untraceable.py):\d+", r"\1:LINE", str(inner)) == message


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
    update = WAYS["step"](Baked([param]))
    message = r"the optimizer has been traced 16 times, .*: \S*\.py:\d+; keep them in tensors"

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
