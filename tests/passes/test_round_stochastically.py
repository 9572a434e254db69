"""``round_stochastically``: one result on any number of ranks, rounded once, and what it leaves."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from update.lockstep_update import SimulatedRanks
from update.optimizers import ELEMENTWISE, WHOLE, of
from zc.codegen.triton_target import render_triton
from zc.passes.fuse_update import FuseUpdate
from zc.passes.lower_update import LowerUpdate
from zc.passes.round_stochastically import RoundStochastically

from zc.errors import PipelineError
from zc.program.kernels import FUSED_UPDATE, spec_of
from zc.program.program import Program
from zc.program.rounding import ROUND_STOCHASTIC
from zc.program.updates import ROUNDING_STEP
from zc.verify import verify

BF16 = torch.bfloat16
ULP = 2.0**-7  # relative, of bf16: results are off by less than one
SHAPES: list[tuple[int, ...]] = [(), (0,), (1,), (5,), (7, 3), (16, 4), (3, 8), (2, 3, 2)]
NO_SHRINKING = (Phase.explicit, Phase.generate)  # a step takes a tenth of a second
SIZES = {"float32": 4, "bfloat16": 2}


class Rounding(SimulatedRanks):
    """Simulated ranks whose program goes through the pass, and through ``others`` behind it."""

    def __init__(self, *args: Any, others: tuple[Any, ...] = (), **options: Any) -> None:
        super().__init__(*args)
        self.passes = (RoundStochastically(**options), *others)

    def program(self) -> tuple[Program, Any]:
        program, traced = super().program()
        for item in self.passes:
            item.run(program)
            verify(program, full=True)
        return program, traced


def values_of(shapes: list[tuple[int, ...]]) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape).to(BF16) for shape in shapes]


def rounds(program: Program) -> list[Any]:
    return list(program.graph.find_nodes(op="call_function", target=ROUND_STOCHASTIC))


@pytest.mark.parametrize("name", ["sgd", "sgd momentum", "adamw", "adafactor"])
def test_program(name: str, golden: Callable[..., None]):
    make = (ELEMENTWISE | WHOLE)[name]
    golden(str(Rounding(2, [torch.zeros(32, 4, dtype=BF16)], make).program()[0]))


def test_in_a_kernel(golden: Callable[..., None]):
    """One pass over memory: 8 bytes read and 6 written for each element, as without rounding."""
    values = [torch.zeros(32, 4, dtype=BF16), torch.zeros(6, 8, dtype=BF16)]
    program, _ = Rounding(4, values, of("AdamW"), others=(LowerUpdate(),)).program()
    golden(str(program))
    (node,) = program.graph.find_nodes(op="call_function", target=FUSED_UPDATE)
    kernel = spec_of(str(node.args[3]))
    text = render_triton(kernel)
    golden(text, suffix=".py")
    of_name = {operand.name: SIZES[operand.dtype] for operand in kernel.operands}
    read = [of_name[n] for n in re.findall(r"tl\.load\((\w+)_at", text)]
    written = [of_name[n] for n in re.findall(r"tl\.store\((\w+)_at", text)]
    assert (sum(read), sum(written)) == kernel.bytes_per_element() == (8, 6)


@settings(max_examples=25, phases=NO_SHRINKING)
@given(
    st.sampled_from(sorted(ELEMENTWISE)),
    st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3),
    st.sampled_from([2, 3, 4]),
    st.sampled_from(["nothing", "kernels", "early kernels"]),
)
def test_one_result_on_any_number_of_ranks(
    name: str, shapes: list[tuple[int, ...]], world: int, behind: str
):
    passes = {"nothing": (), "kernels": (LowerUpdate(),),
              "early kernels": (FuseUpdate(), LowerUpdate())}[behind]  # fmt: skip
    values, make = values_of(shapes), ELEMENTWISE[name]
    one, many = (Rounding(w, values, make, others=passes) for w in (1, world))
    for _ in range(3):
        grads = [torch.randn(shape).to(BF16) for shape in shapes]
        one.step(grads)
        many.step(grads)
    for a, b in zip(one.whole, many.whole, strict=True):
        assert torch.equal(a, b)
        assert one.optimizer.state[a].keys() == many.optimizer.state[b].keys()
        for key, value in one.optimizer.state[a].items():
            theirs = many.optimizer.state[b][key]
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs)), key
    assert one.optimizer.param_groups[0][ROUNDING_STEP] == 3.0


@settings(max_examples=12, phases=NO_SHRINKING)
@given(st.sampled_from(sorted(ELEMENTWISE)))
def test_rounded_once_from_fp32(name: str):
    """One step is within a unit in the last place of the same step of fp32 parameters."""
    make = ELEMENTWISE[name]
    values = values_of([(16, 4), (7, 3)])
    grads = [torch.randn(v.shape).to(BF16) for v in values]
    rounded = Rounding(2, values, make)
    exact = SimulatedRanks(2, [v.float() for v in values], make)
    rounded.step(grads)
    exact.step([g.float() for g in grads])
    for a, b in zip(rounded.whole, exact.whole, strict=True):
        assert ((a - b).abs() <= ULP * b.abs() + 1e-7).all()


def test_muon_rounds_its_last_addition():
    program, _ = Rounding(2, [torch.zeros(7, 3, dtype=BF16)], WHOLE["muon"]).program()
    assert {str(n.args[0].meta["val"].dtype) for n in rounds(program)} == {"torch.float32"}
    assert len(rounds(program)) == 2


def test_parameters_that_one_body_mixes():
    """An element of one is beside an element of the other, in two places: no kernel takes both."""
    values, make = values_of([(16, 4), (16, 4)]), WHOLE["global clip"]
    grads = [torch.randn(16, 4).to(BF16) for _ in values]
    ops, kernels = (Rounding(2, values, make, others=o) for o in ((), (LowerUpdate(),)))
    ops.step(grads)
    assert len(rounds(kernels.step(grads))) == 2
    assert all(torch.equal(a, b) for a, b in zip(ops.whole, kernels.whole, strict=True))


def stepped(seed: int = 0, start: float = 0.0) -> torch.Tensor:
    ranks = Rounding(1, values_of([(64, 16)]), of("SGD", lr=0.1), seed=seed)
    ranks.optimizer.param_groups[0][ROUNDING_STEP] = start
    ranks.step([torch.randn(64, 16, generator=torch.Generator().manual_seed(1)).to(BF16)])
    return ranks.whole[0].detach()


def test_seed_and_step_decide():
    assert torch.equal(stepped(), stepped())
    for other in (stepped(seed=1), stepped(start=1.0), stepped(seed=-1)):
        assert not torch.equal(stepped(), other)
        assert ((stepped() - other).abs() <= 2 * ULP * stepped().abs()).all()
    assert torch.equal(stepped(start=2.0**24), stepped())  # as the docstring of rounding says


def test_state_may_be_left_alone():
    program, _ = Rounding(
        2, [torch.zeros(32, 4, dtype=BF16)], of("AdamW"), optimizer_state=False
    ).program()
    (node,) = rounds(program)
    assert node.name == "p0_rounded"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_other_dtypes_are_left_alone(dtype: torch.dtype):
    ranks = SimulatedRanks(2, [torch.zeros(32, 4, dtype=dtype)], of("AdamW"))
    program, _ = ranks.program()
    before = str(program)
    RoundStochastically().run(program)
    assert str(program) == before


def test_behind_kernels_it_is_refused():
    program, _ = SimulatedRanks(2, [torch.zeros(32, 4, dtype=BF16)], of("SGD", lr=0.1)).program()
    LowerUpdate().run(program)
    (node,) = program.graph.find_nodes(op="call_function", target=FUSED_UPDATE)
    with pytest.raises(PipelineError) as caught:
        RoundStochastically().run(program)
    assert str(caught.value) == (
        "%fused_update writes %p0 from inside a kernel; put 'round_stochastically' before "
        "'lower_update'\n  %fused_update: none = zc.fused_update([%p0], [%p0_grad], [%neg], "
        f'"{node.args[3]}", "auto")'
    )
