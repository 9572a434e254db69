"""``cast_in_update``: the same bits, fewer bytes, and a copy that follows its parameter."""

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import overlap
import pytest
import torch
from acting import helps_always
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tracing import Shapes
from update.optimizers import ELEMENTWISE, of
from update.step_programs import outcome, step_program
from zc.codegen.triton_target import render_triton
from zc.passes.cast_in_update import CastInUpdate, casts_of
from zc.passes.fuse_update import FuseUpdate
from zc.passes.lower_update import LowerUpdate
from zc.passes.shard_params import ShardParams
from zc.passes.shard_update import ShardUpdate

import zc
from zc.cost.balance import Balance
from zc.program.kernels import FUSED_UPDATE, spec_of
from zc.program.program import Program
from zc.program.tables import Output
from zc.verify import verify

BF16 = torch.bfloat16
INPUTS: Shapes = {"x": (2, 8)}
SHAPES: Shapes = {"w0": (8, 8), "w1": (8, 5), "bias": (5,)}
SIZES = {"float32": 4, "bfloat16": 2}


def loss(p: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
    hidden = torch.tanh(x["x"].to(BF16) @ p["w0"].to(BF16))
    return (hidden @ p["w1"].to(BF16) + p["bias"].to(BF16)).square().sum().float()


def stepping(make: Any, zero_stage: int, world: int, reduce_dtype: torch.dtype = BF16) -> Program:
    kinds = {"world": world, "sharded": zero_stage > 0, "reduce_dtype": reduce_dtype}
    program = step_program(loss, SHAPES, INPUTS, make, **kinds)
    ShardParams(zero_stage=zero_stage).run(program)
    ShardUpdate().run(program)
    return program


def test_program(golden: Callable[..., None]):
    program = stepping(of("SGD", lr=0.1), 3, 2)
    CastInUpdate().run(program)
    golden(str(program))


def scaled(p: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
    """The only cast is part of a pass over memory, which reads 4 bytes and would read 2."""
    return (x["x"].to(BF16) * p["w0"].to(BF16)).sum().float()


DEVICE = replace(overlap.DEVICE, memory_bandwidth=1e3, op_seconds=0.0)


@pytest.mark.parametrize(("fn", "helps"), [(scaled, False), (loss, True)])
def test_copies_are_kept_where_casts_take_longer(fn: Any, helps: bool):
    shapes = {name: SHAPES[name] for name in (("w0", "w1", "bias") if helps else ("w0",))}
    program = step_program(fn, shapes, {"x": (8, 8)}, of("SGD", lr=0.1), world=1, sharded=False)
    ShardParams(zero_stage=0).run(program)
    ShardUpdate().run(program)
    text, state = str(program), dict(program.state)
    program.device = DEVICE
    CastInUpdate().run(program)
    verify(program, full=True)
    if helps:
        (note,) = program.notes
        assert re.fullmatch(
            r"cast_in_update: parameters whose casts are kept: 3, in 218 B at rest; casts take "
            r"\d+\.\d{3}ms longer than writing them", note
        )  # fmt: skip
        return
    assert (str(program), program.state) == (text, state)
    assert program.notes == [
        "cast_in_update: left alone: keeping casts of parameters does not shorten forward and "
        "backward by more than it lengthens the update"
    ]


@settings(max_examples=20, phases=[Phase.explicit, Phase.generate], deadline=None)
@given(
    st.sampled_from(sorted(ELEMENTWISE)),
    st.sampled_from([0, 1, 2, 3]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from(["before", "behind", "not"]),
)
def test_results(name: str, zero_stage: int, world: int, fused: str):
    before = stepping(ELEMENTWISE[name], zero_stage, world)
    after = stepping(ELEMENTWISE[name], zero_stage, world)
    if fused == "before":
        FuseUpdate().run(after)
    CastInUpdate().run(after)
    if fused == "behind":
        FuseUpdate().run(after)
    verify(after, full=True)
    for ours, theirs in zip(outcome(after, INPUTS), outcome(before, INPUTS), strict=True):
        own = {key: value for key, value in ours.items() if "compute_copy" not in key}
        torch.testing.assert_close(own, theirs, rtol=0, atol=0, equal_nan=True)
        for param in SHAPES:
            kept = ours.get(f"compute_copy[{param}]", ours[param].to(BF16))
            torch.testing.assert_close(kept, ours[param].to(BF16), rtol=0, atol=0, equal_nan=True)


def test_adamw_moves_28_bytes_in_all():
    """Counted in the rendered source; the gradient is cast on the way in."""
    program = stepping(of("AdamW"), 3, 2)
    CastInUpdate().run(program)
    LowerUpdate().run(program)
    (node,) = program.graph.find_nodes(op="call_function", target=FUSED_UPDATE)
    kernel = spec_of(str(node.args[3]))
    text = render_triton(kernel)
    of_name = {operand.name: SIZES[operand.dtype] for operand in kernel.operands}
    read = [of_name[n] for n in re.findall(r"tl\.load\((\w+)_at", text)]
    written = [of_name[n] for n in re.findall(r"tl\.store\((\w+)_at", text)]
    assert (sum(read), sum(written)) == kernel.bytes_per_element() == (14, 14)


PASSES: list[Any] = [{"shard_params": {"zero_stage": 0}}, "shard_update"]


class Trained:
    """A model under autocast, stepped by zc."""

    def __init__(self, passes: list[Any]) -> None:
        torch._dynamo.reset()
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 4))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        options = {"passes": passes, "executor": "interpret"}
        self.step = torch.compile(self._step, backend="zero", options=options)

    def _step(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", BF16):
            loss = self.model(x).float().square().sum()
        loss.backward()
        zc.step(self.optimizer)
        return loss.detach()


@pytest.mark.parametrize("change", ["nothing", "load_state_dict", "in place", "optimizer"])
def test_the_copy_follows_its_parameter(change: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Balance, "helps", helps_always)
    ours, theirs = Trained([*PASSES, "cast_in_update"]), Trained(PASSES)
    draws = torch.Generator().manual_seed(1)
    start = copy.deepcopy(ours.model.state_dict())
    for i in range(6):
        x = torch.randn(3, 8, generator=draws)
        if i == 3:
            for trained in (ours, theirs):
                alter(trained, change, start)
        assert torch.equal(ours.step(x), theirs.step(x)), i


def alter(trained: Trained, change: str, start: dict[str, torch.Tensor]) -> None:
    if change == "load_state_dict":
        trained.model.load_state_dict(start)
    elif change == "in place":
        with torch.no_grad():
            trained.model[0].weight.mul_(0.5)
    elif change == "optimizer":  # which another trace updates
        trained.optimizer.param_groups[0]["maximize"] = True


def test_a_cast_that_is_returned_stays_a_cast():
    program = stepping(of("SGD", lr=0.1), 0, 1)
    (cast,) = casts_of(program.placeholders("param")[0])
    program.output_node().args = ([*program.output_values(), cast],)
    program.outputs.append(Output("user"))
    CastInUpdate().run(program)
    verify(program, full=True)
    assert sorted(n for n in program.state if "copy" in n) == [
        "compute_copy[bias]", "compute_copy[w1]",
    ]  # fmt: skip
