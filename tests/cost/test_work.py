"""Work of ops by formula, and what of it touches memory once regions are compiled."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import fx
from tracing import physical, program_of

from zc.cost.device import Device, Link
from zc.cost.times import compute_seconds, fusable_runs, in_memory, node_seconds, works_of
from zc.cost.work import Work, work_of
from zc.devices.reader import builtin_device
from zc.program.program import Program

aten: Any = torch.ops.aten
F32 = 4
FAR = Link(0.0, 1e30)


def traced(fn: Any, **shapes: tuple[int, ...]) -> Program:
    return program_of(lambda p, x: fn(p["w"], **x).sum(), {"w": (8, 8)}, shapes)


def node_of(program: Program, target: Any) -> fx.Node:
    return program.graph.find_nodes(op="call_function", target=target)[0]


@pytest.mark.parametrize(
    ("fn", "target", "flops", "read", "written"),
    [
        (lambda w, x: x @ w, aten.mm.default, 2 * 4 * 8 * 8, 4 * 8 + 64, 32),
        (lambda w, x: torch.baddbmm(x[None], x[None], w[None]), aten.baddbmm.default,
         2 * 4 * 64, 2 * 4 * 8 + 64, 32),
        (lambda w, x: torch.tanh(x) @ w, aten.tanh.default, 32, 32, 32),
        (lambda w, x: x.sum(0, keepdim=True) @ w, aten.sum.dim_IntList, 32, 32, 8),
    ],
)  # fmt: skip
def test_flops_and_bytes_follow_from_types(
    fn: Any, target: Any, flops: int, read: int, written: int
):
    done = work_of(node_of(traced(fn, x=(4, 8)), target))
    assert (done.flops, done.read, done.written) == (flops, read * F32, written * F32)


def test_views_inputs_and_collectives_do_no_work():
    program = physical(traced(lambda w, x: x @ w.t(), x=(4, 8)))
    for node in program.graph.nodes:
        if (
            node.op != "call_function"
            or "c10d" in str(node.target)
            or node.target is aten.t.default
        ):
            assert work_of(node) == Work()


def test_a_table_is_read_row_by_row():
    program = program_of(
        lambda p, x: torch.nn.functional.embedding(x["x"].long(), p["w"]).sum(),
        {"w": (1000, 8)}, {"x": (3,)},
    )  # fmt: skip
    done = work_of(node_of(program, aten.embedding.default))
    assert done.read == 3 * 8 * F32 + 3 * 8  # rows, and indices of 8 bytes


def test_expanded_values_count_once():
    program = traced(lambda w, x: (x[:, None] + torch.zeros(4, 8, 8)) @ w, x=(4, 8))
    backward = [n for n in program.graph.nodes if n.target is aten.expand.default]
    assert backward
    assert all(work_of(n) == Work() for n in backward)


def test_attention_is_counted_on_the_cpu():
    program = program_of(
        lambda p, x: torch.nn.functional.scaled_dot_product_attention(
            x["x"] * p["w"], x["x"], x["x"]
        ).sum(),
        {"w": (16,)}, {"x": (1, 2, 32, 16)},
    )  # fmt: skip
    found = [n for n in program.graph.nodes if "flash_attention_for_cpu" in str(n.target)]
    forward = work_of(found[0])
    assert forward.matrix
    assert forward.flops == 2 * 2 * 2 * 32 * 32 * 16  # two products, two heads


def test_fused_ops_hand_values_over_in_registers():
    program = traced(lambda w, x: torch.tanh(torch.exp(x) + 1) @ w, x=(4, 8))
    works = works_of(program.graph)
    runs = fusable_runs(works.of, works.effects)
    found = {n.target: in_memory(n, works.of[n], runs) for n in program.graph.nodes}
    exp, add, tanh = (found[op] for op in (aten.exp.default, aten.add.Tensor, aten.tanh.default))
    assert (exp.read, add.read, tanh.read) == (128, 0, 0)
    assert tanh.written == 128


def test_fixed_times_of_kernels_products_and_regions():
    device = Device(
        name="toy", memory_bytes=1 << 30, memory_bandwidth=1e30, flops={"float32": 1024.0},
        op_seconds=1.0, issue_seconds=0.0, ranks_per_node=1, node=FAR, network=FAR, host=FAR,
        file=FAR, region_seconds=100.0, product_seconds=10.0,
    )  # fmt: skip
    program = traced(lambda w, x: torch.tanh(torch.exp(x) + 1) @ w, x=(4, 8))
    costs = node_seconds(program.graph, program.mesh, device, fused=True)
    by_op = {node.target: seconds for node, seconds in costs.items()}
    found = [by_op[op] for op in (aten.exp.default, aten.add.Tensor, aten.tanh.default)]
    assert found == pytest.approx([0.0, 0.0, 1.0])  # what stays in registers is no kernel
    assert [seconds > 100 for seconds in costs.values()].count(True) == 1  # the region, once
    assert by_op[aten.mm.default] == pytest.approx(10.0 + 2 * 4 * 8 * 8 / 1024)
    alone = node_seconds(program.graph, program.mesh, device, fused=False)
    assert alone[node_of(program, aten.exp.default)] == pytest.approx(1.0)


def test_what_caches_hold_is_read_faster():
    device = replace(builtin_device("cpu"), cache_bytes=1000, cache_bandwidth=1e6)
    assert device.memory_seconds(1000) == 1e-3
    assert device.memory_seconds(2000) == 2000 / device.memory_bandwidth


def test_attention_runs_at_its_share_of_the_rate():
    device = Device(
        name="toy", memory_bytes=1 << 30, memory_bandwidth=1e30, flops={"float32": 64.0},
        op_seconds=1.0, issue_seconds=0.0, ranks_per_node=1, node=FAR, network=FAR, host=FAR,
        file=FAR, attention=0.5,
    )  # fmt: skip
    done = Work(flops=64, read=8, written=8, matrix=True)
    assert compute_seconds(done, device) == pytest.approx(2.0)
    assert compute_seconds(replace(done, attention=True), device) == pytest.approx(3.0)
