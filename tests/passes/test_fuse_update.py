"""``fuse_update``: updates move to their gradients, nothing changes, and what holds them back."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from acting import helps_always
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from overlap import DEVICE
from tracing import Shapes
from update.optimizers import ELEMENTWISE, WHOLE, of
from update.step_programs import outcome, step_program
from zc.passes.fuse_update import FuseUpdate
from zc.passes.lower_update import LowerUpdate
from zc.passes.shard_params import ShardParams
from zc.passes.shard_update import ShardUpdate

import zc
from zc.cost.balance import Balance
from zc.pipelines.pipeline import PassPipeline
from zc.program.kernels import FUSED_UPDATE
from zc.program.loops import loops_of
from zc.program.program import Program
from zc.program.stamps import UPDATE, stamp_of
from zc.torch_private import fake_world
from zc.verify import verify

INPUTS: Shapes = {"x": (2, 8)}
SQUARES: Shapes = {"w0": (8, 8), "w1": (8, 8), "w2": (8, 8)}


def chain(p: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
    value = x["x"]
    for weight in p.values():
        value = torch.tanh(value @ weight)
    return value.sum()


def tied(p: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
    """The first weight is read by the first operation and by the last."""
    return chain(p, x) + torch.tanh(x["x"] @ p["w0"]).square().sum()


def stepping(fn: Any, make: Any, zero_stage: int, world: int, rows: int = 2) -> Program:
    sharded = zero_stage > 0
    program = step_program(fn, SQUARES, {"x": (rows, 8)}, make, world=world, sharded=sharded)
    ShardParams(zero_stage=zero_stage).run(program)
    ShardUpdate().run(program)
    verify(program, full=True)
    return program


def places(program: Program) -> str:
    """The order of backward and update: ``b`` and ``U`` for runs of their nodes."""
    phases = [stamp_of(n).phase for n in program.graph.nodes if n.op == "call_function"]
    letters = ["U" if phase == UPDATE else "b" for phase in phases]
    runs = [a for a, b in zip(letters, ["", *letters], strict=False) if a != b]
    return "".join(runs)


def test_where_no_peak_falls_updates_stay():
    """Gradients are small beside the activations of a large batch."""
    program, text = (stepping(chain, of("AdamW"), 3, 2, rows=4096) for _ in range(2))
    stamps = [stamp_of(node) for node in program.graph.nodes]
    program.device = DEVICE
    FuseUpdate().run(program)
    assert str(program) == str(text)
    assert [stamp_of(node) for node in program.graph.nodes] == stamps
    assert program.notes == [
        "fuse_update: left alone: updating parameters behind their gradients neither shortens the "
        "step nor lowers a peak of live bytes"
    ]


def test_where_a_peak_falls_updates_move():
    program = stepping(chain, of("AdamW"), 0, 2)
    program.device = DEVICE
    FuseUpdate().run(program)
    assert program.notes == [
        "fuse_update: updates behind their gradients: 3, in buckets: 3; the step takes "
        "56000.000ms in place of 56000.000ms, the peak of backward 3.09 KB in place of 3.41 KB"
    ]


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_program(zero_stage: int, golden: Callable[..., None]):
    program = stepping(chain, of("SGD", lr=0.1), zero_stage, 4)
    FuseUpdate().run(program)
    golden(str(program))


@settings(max_examples=30, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(
    st.sampled_from(sorted(set(ELEMENTWISE | WHOLE) - {"by data"})),
    st.sampled_from([chain, tied]),
    st.sampled_from([0, 1, 2, 3]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([0, 256, 400, 10**6]),
)
def test_results(name: str, fn: Any, zero_stage: int, world: int, bucket: int):
    make = (ELEMENTWISE | WHOLE)[name]
    before = stepping(fn, make, zero_stage, world)
    after = stepping(fn, make, zero_stage, world)
    FuseUpdate(bucket_bytes=bucket).run(after)
    verify(after, full=True)
    ours, theirs = outcome(after, INPUTS), outcome(before, INPUTS)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("bucket", "expected"), [(0, "bUbUbU"), (128, "bUbU"), (10**6, "bU")])
def test_buckets(bucket: int, expected: str):
    program = stepping(chain, of("AdamW"), 3, 4)
    FuseUpdate(bucket_bytes=bucket).run(program)
    assert places(program)[: len(expected)] == expected
    LowerUpdate().run(program)
    kernels = program.graph.find_nodes(op="call_function", target=FUSED_UPDATE)
    assert len(kernels) == expected.count("U")


def test_a_parameter_read_again_in_backward_is_updated_behind_that():
    """``w1`` has its gradient before the gradient of its input is computed from it."""
    program = stepping(chain, of("SGD", lr=0.1), 0, 1)
    FuseUpdate().run(program)
    order = [node.name for node in program.graph.nodes]
    (write,) = [n for n in program.graph.nodes if n.name == "w1_copy"]
    weight = next(n for n in program.placeholders("param") if n.name == "w1")
    views = {weight, *(u for u in weight.users if u.op == "call_function")}
    reads = [u.name for v in views for u in v.users if stamp_of(u).phase != UPDATE]
    assert max(map(order.index, reads)) < order.index(write.name)


def test_behind_a_norm_of_all_gradients_nothing_moves():
    program = stepping(chain, WHOLE["global clip"], 3, 2)
    FuseUpdate().run(program)
    assert places(program) == "bU"


def test_no_update_moves_into_a_loop(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Balance, "helps", helps_always)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def part(x: torch.Tensor) -> torch.Tensor:
        loss = model(x).square().mean()
        loss.backward()
        return loss.detach()

    def step(x: torch.Tensor) -> torch.Tensor:
        loss = zc.microbatches(part, 2, x, reduce="mean")
        zc.step(optimizer)
        return loss

    passes = [{"shard_params": {"zero_stage": 0}}, "shard_update", "fuse_update"]
    program = zc.capture(step, torch.randn(4, 4), passes=passes)
    (loop,) = loops_of(program.graph)
    assert program.notes[-1].startswith("fuse_update: updates behind")
    assert not any(stamp_of(node).phase == UPDATE for node in loop.body)


def test_what_updates_share_stands_before_all_that_reads_it(monkeypatch: pytest.MonkeyPatch):
    """Numbers of all updates also go into the count of steps, which is written in its place."""
    monkeypatch.setattr(Balance, "helps", helps_always)
    passes = PassPipeline.builtin("zero3")
    with fake_world(2):
        layers = torch.nn.Linear(8, 64), torch.nn.GELU(), torch.nn.Linear(64, 1)
        model = zc.shard(torch.nn.Sequential(*layers))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

        def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            loss = (model(x) - y).square().mean()
            loss.backward()
            zc.step(optimizer)
            return loss.detach()

        program = zc.capture(step, torch.ones(32, 8), torch.ones(32, 1), passes=passes)
    verify(program, full=True)
    assert any(note.startswith("fuse_update: updates behind") for note in program.notes)
    assert len(program.graph.find_nodes(op="call_function", target=FUSED_UPDATE)) == 1
