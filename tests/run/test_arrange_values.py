"""What is recorded in parts computes what the plain loop does."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from run.built import Built, double, loop_of
from stand_in import StandIn
from torch import fx

from zc.capture.random_ops import UNIFORM
from zc.program.program import Program
from zc.program.tables import Input, State
from zc.program.updates import keep_number
from zc.run import arrange as arranging
from zc.run.late_state import Cell
from zc.run.recorded_loop import RecordedLoop

aten = torch.ops.aten
CALLS = 5


@pytest.fixture(autouse=True)
def _record_all(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(arranging, "MIN_LAUNCHES", 1)


def test_compiled_regions_draw_what_each_call_asks_for():
    built = Built()
    built.program.state["seed"] = State("seed", "seed", (), torch.int64)
    with built.program.fake_mode:
        value = torch.empty((), dtype=torch.int64)
    seed = built.input("seed", Input("state", "seed"), value)
    kept = built.call(aten.ge.Scalar, _uniform(built, seed, 0), 0.5)
    noise = built.call(aten.add.Tensor, _uniform(built, seed, 1), built.w)
    program = built.returns(built.call(aten.mul.Tensor, kept, noise))
    recorded = RecordedLoop(program, StandIn())
    plain = loop_of(program, Cell(1.0), None, executor="interpret")
    compiled = loop_of(recorded.program, Cell(1.0), recorded, executor="inductor")
    for number in range(CALLS):
        values = []
        for loop in (plain, compiled):
            torch.manual_seed(number)
            values += loop([torch.ones(4), torch.ones(4), torch.ones(())])
        assert torch.equal(*values)


def _uniform(built: Built, seed: fx.Node, offset: int) -> fx.Node:
    return built.call(UNIFORM, seed, offset, [4], torch.float32, torch.device("cpu"))


OPS = ("add", "add_", "scale", "scale_", "view", "number", "item", "sum", "keep")
DRAWN = st.lists(
    st.tuples(st.sampled_from(OPS), st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=14
)


@settings(max_examples=60, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(DRAWN)
def test_values_are_those_of_the_plain_loop(drawn: list[tuple[str, int, int]]):
    """Whatever writes where, and whatever the host knows or waits for."""
    program = _drawn(drawn)
    results = []
    for recorded in (None, RecordedLoop(program, StandIn())):
        cell, kept, w, found = Cell(), [], torch.arange(4.0), []
        loop = loop_of(recorded.program if recorded else program, cell, recorded, kept)
        for number in range(CALLS):
            cell.value = 1.0 + number / 8
            found.append(loop([w, torch.full((4,), 0.25 * number), torch.ones(())]))
        results.append(SimpleNamespace(w=w, kept=kept, found=found))
    plain, replayed = results
    assert torch.equal(plain.w, replayed.w)
    assert plain.kept == replayed.kept
    for one, other in zip(plain.found, replayed.found, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(one, other, strict=True))


def _drawn(drawn: list[tuple[str, int, int]]) -> Program:
    built = Built()
    tensors, numbers = [built.w, built.x], [built.lr]
    for op, i, j in drawn:
        one, other, number = tensors[i % len(tensors)], tensors[j % len(tensors)], numbers[-1]
        if op == "number":
            numbers.append(built.call(double, numbers[i % len(numbers)]))
        elif op == "item":
            total = built.call(aten.tanh.default, built.call(aten.sum.default, one))
            numbers.append(built.call(aten._local_scalar_dense.default, total))
        elif op == "keep":
            built.call(keep_number, numbers[i % len(numbers)], f"entry{i}")
        elif op == "sum":
            total = built.call(aten.sum.default, one)
            tensors.append(built.call(aten.tanh.default, built.call(aten.add.Tensor, other, total)))
        elif op == "view":
            tensors.append(built.call(aten.view.default, one, [4]))
        elif op.startswith("scale"):
            target = aten.mul_.Tensor if op.endswith("_") else aten.mul.Tensor
            tensors.append(built.call(target, one, number))
        else:
            target = aten.add_.Tensor if op.endswith("_") else aten.add.Tensor
            tensors.append(built.call(target, one, other))
    return built.returns(*dict.fromkeys(t for t in tensors[2:] if t is not built.w))
