"""``lower_update``: one launch for parameters that are alike, the same results, what it leaves."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from update.lockstep_update import SimulatedRanks
from update.optimizers import ELEMENTWISE, WHOLE, of
from zc.passes.lower_update import LowerUpdate

import zc
from zc.program.kernels import FUSED_UPDATE, spec_of
from zc.program.program import Program

aten: Any = torch.ops.aten
SHAPES: list[tuple[int, ...]] = [(), (0,), (1,), (5,), (7, 3), (16, 4)]
# relative and absolute, of numbers near 1; intermediate values are rounded once, not at each op
ROUNDING = {torch.float32: 2e-6, torch.float64: 1e-14, torch.bfloat16: 2**-5}
MIXED = of("AdamW", lr=0.01)


class Lowered(SimulatedRanks):
    """Simulated ranks whose program goes through ``lower_update``."""

    def program(self) -> tuple[Program, Any]:
        program, traced = super().program()
        LowerUpdate().run(program)
        return program, traced


def kernels(program: Program) -> list[Any]:
    nodes = program.graph.find_nodes(op="call_function", target=FUSED_UPDATE)
    return [spec_of(str(node.args[3])) for node in nodes]


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lamb"])
def test_program(name: str, golden: Callable[..., None]):
    make = (ELEMENTWISE | WHOLE)[name]
    golden(str(Lowered(2, [torch.zeros(32, 4), torch.zeros(32, 4)], make).program()[0]))


@settings(max_examples=25, phases=[Phase.explicit, Phase.generate])
@given(
    st.sampled_from(sorted(ELEMENTWISE | WHOLE)),
    st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.sampled_from([1, 2, 4]),
)
def test_results(name: str, shapes: list[tuple[int, ...]], dtype: torch.dtype, world: int):
    if name == "muon":
        shapes = [shape for shape in shapes if len(shape) == 2] or [(7, 3)]
    if name == "adafactor":  # which divides by the number of elements
        shapes = [shape for shape in shapes if 0 not in shape] or [(7, 3)]
    torch.manual_seed(0)
    values = [torch.randn(shape).to(dtype) for shape in shapes]
    make = (ELEMENTWISE | WHOLE)[name]
    one, other = SimulatedRanks(world, values, make), Lowered(world, values, make)
    for _ in range(3):
        grads = [torch.randn(shape).to(dtype) for shape in shapes]
        one.step(grads)
        other.step(grads)
        for a, b in zip(one.whole, other.whole, strict=True):
            torch.testing.assert_close(b, a, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])
            with torch.no_grad():  # rounding does not add up
                b.copy_(a)
        other.optimizer.state.update(
            {b: dict(one.optimizer.state[a]) for a, b in zip(one.whole, other.whole, strict=True)}
        )


@pytest.mark.parametrize("name", sorted(set(ELEMENTWISE) - {"adamw tensor lr"}))
def test_elementwise_updates_are_all_kernel(name: str):
    ranks = Lowered(2, [torch.randn(32, 4)], ELEMENTWISE[name])
    ranks.step([torch.randn(32, 4)])
    program, _ = ranks.program()
    shared = (aten.expand.default, aten.copy_.default)  # step counts
    calls = [n for n in program.graph.nodes if n.op == "call_function"]
    values = {n: n.meta["val"] for n in calls}
    tensors = [n for n, v in values.items() if isinstance(v, torch.Tensor) and v.dim()]
    assert [n.name for n in tensors if n.target not in shared] == []
    assert len(kernels(program)) == 1


def test_parameters_alike_share_a_launch():
    program, _ = Lowered(2, [torch.zeros(32, 4)] * 5, MIXED).program()
    (node,) = program.graph.find_nodes(op="call_function", target=FUSED_UPDATE)
    assert len(node.args[0]) == 3 * 5
    assert len(node.args[1]) == 5


def test_adamw_reads_16_and_writes_12_bytes():
    (kernel,) = kernels(Lowered(2, [torch.zeros(32, 4)], MIXED).program()[0])
    assert kernel.bytes_per_element() == (16, 12)
    assert [o.name for o in kernel.operands] == ["param", "exp_avg", "exp_avg_sq", "grad"]


def test_numbers_say_what_they_are():
    (kernel,) = kernels(Lowered(2, [torch.zeros(32, 4)], MIXED).program()[0])
    assert sorted(number.meaning for number in kernel.numbers) == [
        "((1 - (betas[1] ** (step + 1))) ** 0.5)",
        "(1 - (lr * weight_decay))",
        "-(lr / (1 - (betas[0] ** (step + 1))))",
        "1 - betas[0]",
        "1 - betas[1]",
        "betas[1]",
        "eps",
    ]


def clipping_step(how: str) -> Callable[..., torch.Tensor]:
    model = torch.nn.Linear(8, 4)
    optimizer = torch.optim.AdamW(model.parameters())

    def step(x: torch.Tensor) -> torch.Tensor:
        loss = model(x).square().sum()
        loss.backward()
        if how == "norm":
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        else:
            torch.nn.utils.clip_grad_value_(model.parameters(), 0.1)
        zc.step(optimizer)
        return loss.detach()

    return step


@pytest.mark.parametrize(
    ("how", "first"), [("norm", "grad * factor"), ("value", "maximum(grad, -0.1)")]
)
def test_clipping_happens_in_the_kernel(how: str, first: str):
    program = zc.capture(clipping_step(how), torch.randn(5, 8), passes="zero0")
    (kernel,) = kernels(program)
    assert kernel.bytes_per_element() == (16, 12)
    assert kernel.body[0].text() == first
    assert [o.name for o in kernel.operands if o.scalar] == ["factor"] * (how == "norm")


class Whole(torch.optim.Optimizer):
    """Steps by whole numbers."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                whole = (param.grad * 10).int() * 2 + 1
                param.add_(whole.float(), alpha=-group["lr"])


def test_whole_numbers_stay_out_of_the_kernel():
    values = [torch.randn(7, 3)]
    one, other = SimulatedRanks(1, values, Whole), Lowered(1, values, Whole)
    grads = [torch.randn(7, 3)]
    one.step(grads)
    other.step(grads)
    torch.testing.assert_close(other.whole[0], one.whole[0], rtol=2e-6, atol=2e-6)
