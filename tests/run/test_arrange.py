"""Which parts of a program are recorded, in which order, and that values stay the same."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from stand_in import StandIn
from torch import fx

from zc.capture.random_ops import UNIFORM
from zc.program.collectives import C10D
from zc.program.edit import Editor
from zc.program.mesh import Mesh
from zc.program.nodes import set_input
from zc.program.program import Program
from zc.program.stamps import FORWARD, Stamp, set_stamp
from zc.program.tables import Input, Output, State
from zc.program.updates import NUMBER, keep_number
from zc.run import arrange as arranging
from zc.run.arrange import arrange
from zc.run.executor import build_loop
from zc.run.late_state import Cell
from zc.run.recorded_loop import RecordedLoop
from zc.torch_private import fake_mode_of

aten = torch.ops.aten
CPU = torch.device("cpu")
CALLS = 5


@pytest.fixture(autouse=True)
def _record_all(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(arranging, "MIN_LAUNCHES", 1)


class Built:
    """A program built node by node: a parameter ``w``, a batch ``x``, a number ``lr``."""

    def __init__(self, device: torch.device = CPU) -> None:
        mode = fake_mode_of([])
        graph = fx.Graph()
        entry = State("lr", "hyperparameter", (), None)
        self.program = Program(
            "step", 2, Mesh(), {"step": graph}, [], state={"lr": entry}, fake_mode=mode
        )
        with mode:
            tensor = torch.empty(4, device=device)
            scalar = torch.empty(())
        self.w = self._input("w", Input("buffer", "w", 0), tensor)
        self.x = self._input("x", Input("user", "x", 1), torch.empty_like(tensor))
        self.on_cpu = self._input("on_cpu", Input("user", "on_cpu", 2), scalar)
        self.lr = self._input("lr", Input("state", "lr"), NUMBER)
        self.edit = Editor(self.program, graph, "test", Stamp(phase=FORWARD))

    def _input(self, name: str, what: Input, value: Any) -> fx.Node:
        node = self.program.graphs["step"].placeholder(name)
        node.meta["val"] = value
        set_input(node, what)
        set_stamp(node, Stamp())
        return node

    def call(self, target: Any, *args: Any) -> fx.Node:
        return self.edit.call(target, *args)

    def returns(self, *values: fx.Node) -> Program:
        self.program.graph.output(list(values))
        self.program.outputs = [Output("user")] * len(values)
        return self.program

    def parts(self) -> list[tuple[bool, list[str]]]:
        found = arrange(self.program, self.program.graph, "cpu").parts
        return [(part.recorded, [node.name for node in part.nodes]) for part in found]


def test_numbers_go_in_front():
    built = Built()
    first = built.call(aten.mul.Tensor, built.w, built.x)
    rate = built.call(_double, built.lr)
    second = built.call(aten.add.Tensor, first, built.x)
    built.returns(built.call(aten.mul.Tensor, second, rate))
    assert built.parts() == [
        (False, ["double"]),
        (True, ["mul", "add"]),
        (False, ["mul_1"]),
    ]


def test_what_the_host_waits_for_goes_behind():
    built = Built()
    found = built.call(aten.sum.default, built.x)
    read = built.call(aten._local_scalar_dense.default, found)
    built.call(keep_number, read, "found")
    built.returns(built.call(aten.mul.Tensor, built.w, built.x))
    assert built.parts() == [
        (True, ["sum_1", "mul"]),
        (False, ["local_scalar_dense", "keep_number"]),
    ]


def test_what_follows_from_plain_nodes_is_another_part():
    built = Built()
    first = built.call(aten.mul.Tensor, built.w, built.x)
    scaled = built.call(aten.mul.Tensor, first, built.lr)
    built.returns(built.call(aten.neg.default, scaled), built.call(aten.neg.default, first))
    assert built.parts() == [(True, ["mul"]), (False, ["mul_1"]), (True, ["neg", "neg_1"])]


def test_a_write_stays_behind_what_reads_before_it():
    built = Built()
    first = built.call(aten.neg.default, built.w)
    scaled = built.call(aten.mul.Tensor, first, built.lr)
    plain = built.call(aten.mul.Tensor, built.w, built.lr)
    built.call(aten.add_.Tensor, built.w, built.x)
    built.returns(plain, scaled)
    assert built.parts() == [(False, ["mul_1"]), (True, ["neg", "add"]), (False, ["mul"])]


def test_a_plain_write_ends_a_part():
    built = Built()
    first = built.call(aten.neg.default, built.w)
    built.call(aten.mul_.Tensor, built.w, built.lr)
    built.returns(first, built.call(aten.neg.default, built.w))
    assert built.parts() == [(True, ["neg"]), (False, ["mul"]), (True, ["neg_1"])]


def test_few_launches_are_not_recorded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(arranging, "MIN_LAUNCHES", 2)
    built = Built()
    built.returns(built.call(aten.neg.default, built.call(aten.view.default, built.w, [2, 2])))
    assert built.parts() == [(False, ["view", "neg"])]


def test_collectives_are_recorded():
    built = Built()
    start = built.call(C10D.all_gather_into_tensor.default, built.x, 2, "dp")
    scaled = built.call(aten.mul.Tensor, built.w, built.lr)
    wait = built.call(C10D.wait_tensor.default, start)
    built.returns(built.call(aten.neg.default, wait), scaled)
    assert built.parts() == [
        (False, ["mul"]),
        (True, ["all_gather_into_tensor", "wait_tensor", "neg"]),
    ]


def test_a_collective_that_begins_in_one_part_and_ends_in_another_is_in_none():
    built = Built()
    start = built.call(C10D.all_gather_into_tensor.default, built.x, 2, "dp")
    first = built.call(aten.neg.default, built.w)
    scaled = built.call(aten.mul.Tensor, first, built.lr)
    second = built.call(aten.neg.default, scaled)
    wait = built.call(C10D.wait_tensor.default, start)
    built.returns(built.call(aten.neg.default, wait), second)
    assert built.parts() == [
        (False, ["all_gather_into_tensor"]),
        (True, ["neg"]),
        (False, ["mul"]),
        (False, ["wait_tensor"]),
        (True, ["neg_1", "neg_2"]),
    ]


def test_tensors_of_the_cpu_are_the_hosts_where_a_gpu_computes():
    """Built for a GPU that is not there."""
    built = Built(torch.device("cuda"))
    moved = built.call(aten._to_copy.default, built.on_cpu)
    first = built.call(aten.neg.default, built.w)
    added = built.call(aten.add.Tensor, first, built.on_cpu)
    host = built.call(aten.neg.default, built.on_cpu)
    built.returns(moved, added, host)
    found = arrange(built.program, built.program.graph, "cuda")
    assert [(part.recorded, [n.name for n in part.nodes]) for part in found.parts] == [
        (False, ["to_copy", "neg_1"]),
        (True, ["neg"]),
        (False, ["add"]),
    ]


def test_the_note():
    built = Built()
    first = built.call(aten.mul.Tensor, built.w, built.x)
    rate = built.call(_double, built.lr)
    last = [built.call(aten.mul.Tensor, first, rate) for _ in range(4)][-1]
    read = built.call(aten._local_scalar_dense.default, first)
    built.call(keep_number, read, "found")
    built.returns(last)
    assert arrange(built.program, built.program.graph, "cpu").note() == (
        "cuda_graph: 1 of 8 nodes in 1 recorded parts; not %mul_1, %mul_2, %mul_3 and 1 more: "
        "reads what the host computes anew at each call; not %local_scalar_dense: gives a value to "
        "the host"
    )


def test_source(golden: Callable[..., None]):
    """The loop and its part; what is returned of a part is copied."""
    built = Built()
    first = built.call(aten.mul.Tensor, built.w, built.x)
    second = built.call(aten.add.Tensor, first, built.x)
    scaled = built.call(aten.mul.Tensor, second, built.lr)
    program = built.returns(first, scaled)
    recorded = RecordedLoop(program, StandIn())
    loop = _loop(recorded.program, Cell(1.0), recorded)
    part = loop.__globals__["recorded0"]
    golden("\n".join([loop.source, part._run.source]), ".py")  # type: ignore[attr-defined]


def test_compiled_regions_draw_what_each_call_asks_for():
    built = Built()
    built.program.state["seed"] = State("seed", "seed", (), torch.int64)
    with built.program.fake_mode:
        value = torch.empty((), dtype=torch.int64)
    seed = built._input("seed", Input("state", "seed"), value)
    kept = built.call(aten.ge.Scalar, _uniform(built, seed, 0), 0.5)
    noise = built.call(aten.add.Tensor, _uniform(built, seed, 1), built.w)
    program = built.returns(built.call(aten.mul.Tensor, kept, noise))
    recorded = RecordedLoop(program, StandIn())
    plain = _loop(program, Cell(1.0), None, executor="interpret")
    compiled = _loop(recorded.program, Cell(1.0), recorded, executor="inductor")
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
        loop = _loop(recorded.program if recorded else program, cell, recorded, kept)
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
            numbers.append(built.call(_double, numbers[i % len(numbers)]))
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


def _loop(
    program: Program,
    cell: Cell,
    recorded: Any,
    kept: list[Any] | None = None,
    executor: str = "interpret",
) -> Any:
    def store(value: float, name: str) -> None:
        if kept is not None:
            kept.append((name, value))

    how = (executor, "step", {"lr": cell}, store)
    return build_loop(program, program.graph, program.outputs, *how, recorded=recorded)


def _double(value: float) -> float:
    return value * 2 % 3
