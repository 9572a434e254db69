"""``round_stochastically``: one result on any number of ranks, small steps that count, resuming."""

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from multiprocess import run_ranks
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import distribute_tensor
from update.lockstep_update import SimulatedRanks
from update.optimizers import ELEMENTWISE, WHOLE, Awkward, of
from zc.codegen.triton_target import render_triton
from zc.passes.fuse_update import FuseUpdate
from zc.passes.lower_update import LowerUpdate
from zc.passes.round_stochastically import RoundStochastically

import zc
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


EAGER: list[Any] = [{"shard_params": {"zero_stage": 0}}, "shard_update", "round_stochastically"]
KERNELS = [*EAGER, "clean_graph", "lower_update"]
NEAREST = [item for item in KERNELS if item != "round_stochastically"]


class Trained:
    """A small bf16 model stepped by zc, from batches that depend on the step alone."""

    def __init__(self, make: Any, passes: list[Any]) -> None:
        torch._dynamo.reset()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)).to(BF16)
        self.optimizer = make(list(self.model.parameters()))
        options = {"passes": passes, "executor": "interpret"}
        self.step = torch.compile(self._step, backend="zero", options=options)

    def _step(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = (self.model(x).float() - y).square().mean()
        loss.backward()
        zc.step(self.optimizer)
        return loss.detach()

    def train(self, first: int, last: int) -> list[float]:
        losses = []
        target = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
        for i in range(first, last):
            x = torch.randn(64, 8, generator=torch.Generator().manual_seed(100 + i))
            losses.append(self.step(x.to(BF16), torch.tanh(x @ target)).item())
        return losses


@pytest.mark.parametrize("passes", [EAGER, KERNELS], ids=["ops", "kernels"])
@pytest.mark.parametrize("name", ["sgd momentum", "adamw"])
def test_a_checkpoint_resumes_with_the_same_bits(name: str, passes: list[Any]):
    whole = Trained(ELEMENTWISE[name], passes)
    whole.train(0, 3)
    kept = copy.deepcopy((whole.model.state_dict(), whole.optimizer.state_dict()))
    assert kept[1]["param_groups"][0][ROUNDING_STEP] == 3.0
    expected = whole.train(3, 6)
    resumed = Trained(ELEMENTWISE[name], passes)
    resumed.model.load_state_dict(kept[0])
    resumed.optimizer.load_state_dict(kept[1])
    assert resumed.train(3, 6) == expected
    pairs = zip(resumed.model.parameters(), whole.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_checkpoint_of_another_optimizer_counts_from_zero():
    trained = Trained(ELEMENTWISE["adamw"], EAGER)
    trained.train(0, 2)
    kept = copy.deepcopy(trained.optimizer.state_dict())
    del kept["param_groups"][0][ROUNDING_STEP]
    trained.optimizer.load_state_dict(kept)
    trained.train(2, 3)
    assert trained.optimizer.param_groups[0][ROUNDING_STEP] == 1.0


STEPS = 800
# losses of the last ten steps to nearest, by those with stochastic rounding: measured 4.0 and 5.6
GAINS = {"adamw": (of("AdamW", lr=3e-4), 2.5), "momentum": (of("SGD", lr=0.05, momentum=0.9), 3.5)}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """So small a model has nothing for a second one to do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", GAINS)
def test_training_gets_further_than_to_nearest(name: str):
    make, gain = GAINS[name]

    def last(passes: list[Any]) -> float:
        return sum(Trained(make, passes).train(0, STEPS)[-10:])

    assert last(KERNELS) * gain <= last(NEAREST)


def rank_results(rank: int, world: int) -> list[list[torch.Tensor]]:
    """Whole parameters after some steps from gradients that depend on the step alone."""
    return [_updated(make, shard=True) for make in (of("AdamW"), of("SGD", lr=0.1))]


def _updated(make: Any, *, shard: bool) -> list[torch.Tensor]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model: Any = Awkward().to(BF16)
    model = zc.shard(model) if shard else model
    params = list(model.parameters())
    optimizer = make(params)
    stage = {"shard_params": {"zero_stage": 3 if shard else 0}}
    options = {"passes": [stage, *KERNELS[1:]], "executor": "interpret"}
    update = torch.compile(lambda: zc.step(optimizer), backend="zero", options=options)
    for step in range(3):
        draws = torch.Generator().manual_seed(step)
        for p in params:
            grad = torch.randn(p.shape, generator=draws).to(BF16)
            p.grad = distribute_tensor(grad, p.device_mesh, p.placements) if shard else grad
        update()
    return [p.full_tensor() if shard else p.detach().clone() for p in params]


def test_two_ranks_have_the_bits_of_one():
    alone = [_updated(make, shard=False) for make in (of("AdamW"), of("SGD", lr=0.1))]
    for found in run_ranks(rank_results, 2, timeout=200):
        for ours, theirs in zip(found, alone, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_resuming_through_distributed_checkpoint(tmp_path: Path):
    """Which loads only what the optimizer has already: the count must be there."""
    whole = Trained(ELEMENTWISE["adamw"], KERNELS)
    whole.train(0, 3)
    kept = {"model": whole.model.state_dict(), "optim": optimizer_state(whole)}
    dcp.save(kept, checkpoint_id=tmp_path, no_dist=True)
    expected = whole.train(3, 6)
    resumed = Trained(ELEMENTWISE["adamw"], KERNELS)
    resumed.optimizer.param_groups[0][ROUNDING_STEP] = 0.0
    found = {"model": resumed.model.state_dict(), "optim": optimizer_state(resumed)}
    dcp.load(found, checkpoint_id=tmp_path, no_dist=True)
    set_optimizer_state_dict(resumed.model, resumed.optimizer, found["optim"])
    assert resumed.optimizer.param_groups[0][ROUNDING_STEP] == 3.0
    assert resumed.train(3, 6) == expected


def optimizer_state(trained: Trained) -> dict[str, Any]:
    return get_optimizer_state_dict(trained.model, trained.optimizer)
