"""``lower_update``: values that a kernel may not read late, or not as the number they came from."""

from typing import Any

import pytest
import torch
from torch import fx
from update.lockstep_update import SimulatedRanks
from zc.passes.lower_update import LowerUpdate

from zc.program.kernels import FUSED_UPDATE
from zc.program.program import Program
from zc.verify import verify

aten: Any = torch.ops.aten
ROUNDING = 2e-6  # relative and absolute, of numbers near 1 in fp32, as in test_lower_update


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class Plain(torch.optim.Optimizer):
    """Steps all parameters of its group together; ``old`` has copies of them."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1, "by": 2.7})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            self.together(group, group["params"])

    def together(self, group: dict[str, Any], params: list[torch.Tensor]) -> None:
        raise NotImplementedError


class CutOff(Plain):
    """The factor is a whole number: 2.7 counts as 2."""

    def together(self, group: dict[str, Any], params: list[torch.Tensor]) -> None:
        for param in params:
            factor = torch.tensor(group["by"], dtype=torch.int64)
            param.mul_(factor).sub_(param.grad, alpha=group["lr"])


class History(Plain):
    """State of two rows, of which the parameter reads one before it is written."""

    def together(self, group: dict[str, Any], params: list[torch.Tensor]) -> None:
        for param in params:
            state = self.state[param]
            if not state:
                state["history"] = torch.zeros(2, *param.shape)
                state["seen"] = torch.zeros_like(param)
            old = state["history"][0]
            param.sub_(group["lr"] * (old + param.grad))
            state["seen"].add_(old * 2)
            state["history"].copy_(torch.stack([state["history"][1], param.grad]))


class Neighbours(Plain):
    """Each parameter moves towards what the one before it was, seen in its own shape."""

    def together(self, group: dict[str, Any], params: list[torch.Tensor]) -> None:
        old = [param.clone() for param in params]
        for param, other in zip(params, [*old[1:], *old[:1]], strict=True):
            param.lerp_(other.view(param.shape), group["lr"]).sub_(param.grad)


class Lowered(SimulatedRanks):
    """Simulated ranks whose program goes through ``lower_update``."""

    def program(self) -> tuple[Program, Any]:
        program, traced = super().program()
        LowerUpdate(target="eager").run(program)
        verify(program, full=True)
        return program, traced


def kernels(program: Program) -> list[fx.Node]:
    return list(program.graph.find_nodes(op="call_function", target=FUSED_UPDATE))


def both(make: Any, values: list[torch.Tensor], world: int) -> Program:
    """Three steps with ``lower_update`` and without; the program of the last one."""
    one, other = SimulatedRanks(world, values, make), Lowered(world, values, make)
    programs = []
    for _ in range(3):
        grads = [torch.randn_like(value) for value in values]
        one.step(grads)
        programs.append(other.step(grads))
        for a, b in zip(one.whole, other.whole, strict=True):
            torch.testing.assert_close(b, a, rtol=ROUNDING, atol=ROUNDING)
    return programs[-1]


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("make", [CutOff, History, Neighbours])
@pytest.mark.parametrize("shapes", [[(8, 4)], [(8, 4)] * 3, [(8, 4), (32,), (4, 8)]])
def test_results(make: Any, shapes: list[tuple[int, ...]], world: int):
    assert kernels(both(make, [torch.randn(shape) for shape in shapes], world))


def test_a_row_that_is_written_before_the_launch_is_copied():
    """The launch stands behind the writes of both parameters and of their state."""
    program = both(History, [torch.randn(8, 4) for _ in range(2)], 1)
    (kernel,) = kernels(program)
    read = [n for n in kernel.args[1] if n.op == "call_function"]  # type: ignore[union-attr]
    assert [n.target for n in read] == [aten.clone.default] * 2


def test_a_parameter_that_lies_another_way_is_not_written():
    """Kernels count elements one by one: they read a copy of it, and leave writing it to torch."""
    turned = torch.randn(4, 8).t()
    (kernel,) = kernels(both(Neighbours, [torch.randn(8, 4), turned], 1))
    written, read = kernel.args[:2]
    assert [node.name for node in written] == ["p0"]  # type: ignore[union-attr]
    assert "clone" in str(read)
