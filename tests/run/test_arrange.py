"""Which parts of a program are recorded, and in which order."""

from collections.abc import Callable

import pytest
import torch
from run.built import Built, double, loop_of
from stand_in import StandIn

from zc.program.collectives import C10D
from zc.program.updates import keep_number
from zc.run import arrange as arranging
from zc.run.arrange import arrange
from zc.run.late_state import Cell
from zc.run.recorded_loop import RecordedLoop

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def _record_all(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(arranging, "MIN_LAUNCHES", 1)


def test_numbers_go_in_front():
    built = Built()
    first = built.call(aten.mul.Tensor, built.w, built.x)
    rate = built.call(double, built.lr)
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
    rate = built.call(double, built.lr)
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
    loop = loop_of(recorded.program, Cell(1.0), recorded)
    part = loop.__globals__["recorded0"]
    golden("\n".join([loop.source, part._run.source]), ".py")  # type: ignore[attr-defined]
