"""The simulated step: lanes overlap as far as waits allow, seconds add up by hand."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tracing import physical, program_of
from zc.passes.bucket_collectives import BucketCollectives

from zc.cost.device import Device, Link
from zc.cost.simulate import simulate
from zc.cost.timeline import Timeline
from zc.cost.times import node_seconds
from zc.program.collectives import is_collective, is_wait
from zc.program.liveness import peak_bytes
from zc.program.program import Program

aten: Any = torch.ops.aten
FAR = Link(1.0, 1e30)
DEVICE = Device(
    name="toy", memory_bytes=1 << 30, memory_bandwidth=1e30, flops={"float32": 1e30},
    op_seconds=1.0, issue_seconds=0.0, ranks_per_node=8, node=Link(2.0, 1e30), network=FAR,
    host=FAR, file=FAR,
)  # fmt: skip


def chain(world: int = 2) -> Program:
    """Two layers; stage 3 gathers each weight in forward, and the second again in backward."""

    def loss(p: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
        return ((x["x"] @ p["w0"]) @ p["w1"]).sum()

    return physical(program_of(loss, {"w0": (8, 8), "w1": (8, 8)}, {"x": (4, 8)}, world), 3)


def times(program: Program, device: Device = DEVICE) -> Timeline:
    return simulate(program, device, fused=False)


def test_without_overlap_everything_adds_up():
    program = chain()
    found = times(program)
    costs = node_seconds(program.graph, program.mesh, DEVICE, fused=False)
    assert found.exposed_seconds == sum(s for n, s in costs.items() if is_collective(n))
    assert found.seconds == sum(costs.values())
    assert found.compute_seconds == sum(s for n, s in costs.items() if not is_collective(n))
    assert found.lane_seconds["gather"] == 3 * 2.0
    assert found.lane_seconds["reduce"] == 2 * 2.0
    assert sum(found.phase_seconds.values()) == found.seconds
    assert found.peak_bytes == peak_bytes(program.graph)


def test_a_gather_that_starts_early_hides_behind_compute():
    program = chain()
    second = next(n for n in program.graph.nodes if n.name == "w1_gather")
    before = times(program)
    next(n for n in program.graph.nodes if n.target is aten.mm.default).prepend(second)
    after = times(program)
    assert before.seconds - after.seconds == 1.0  # the product takes a second of the gather's two
    assert before.compute_seconds == after.compute_seconds


def test_compute_is_slower_beside_a_collective():
    program = chain()
    second = next(n for n in program.graph.nodes if n.name == "w1_gather")
    next(n for n in program.graph.nodes if n.target is aten.mm.default).prepend(second)
    slowed = times(program, replace(DEVICE, node=replace(DEVICE.node, interference=0.5)))
    assert slowed.seconds == times(program).seconds  # two seconds for the product, none to wait
    assert slowed.compute_seconds == times(program).compute_seconds


def test_how_much_slower_depends_on_the_link():
    program = chain()
    second = next(n for n in program.graph.nodes if n.name == "w1_gather")
    next(n for n in program.graph.nodes if n.target is aten.mm.default).prepend(second)
    link = Link(2.0, 1e30)
    device = replace(DEVICE, node=replace(link, interference=1.0), network=link)
    apart = times(program, replace(device, ranks_per_node=1))
    assert apart == times(program)  # the same latencies
    assert times(program, device).seconds == times(chain()).seconds  # nothing is hidden


def test_one_lane_takes_collectives_in_turn():
    program = chain()
    graph = program.graph
    scatters = [n for n in graph.nodes if "scatter" in n.name and is_collective(n)]
    (output,) = graph.find_nodes(op="output")
    for scatter in scatters:
        for wait in scatter.users:
            output.prepend(wait)
    apart = times(program)
    together = times(program, replace(DEVICE, one_lane=True))
    assert together.lane_seconds == {"compute": apart.compute_seconds, "gather": 10.0}
    assert together.seconds >= apart.seconds


def test_a_lane_that_works_on_after_the_last_op_counts():
    program = chain()
    for wait in [n for n in program.graph.nodes if is_wait(n)]:
        assert wait.users  # every collective is waited for
    long = replace(DEVICE, node=Link(100.0, 1e30))
    assert times(program, long).seconds == 500.0 + times(program).compute_seconds


def test_issuing_takes_time_of_the_compute_lane():
    program = chain()
    issued = sum(is_collective(n) for n in program.graph.nodes)
    found = times(program, replace(DEVICE, issue_seconds=0.25))
    assert found.seconds == times(program).seconds + 0.25 * issued  # waits are called meanwhile
    assert found.compute_seconds == times(program).compute_seconds


def test_the_first_wait_for_a_bucket_is_for_all_of_it():
    program, device = chain(), replace(DEVICE, issue_seconds=0.25)
    BucketCollectives().run(program)
    graph = program.graph
    bucket = next(n for n in graph.nodes if n.name == "w0_gather_bucket")
    waits = [n for n in graph.nodes if is_wait(n) and n.all_input_nodes[0] in bucket.users]
    assert len(waits) == 2
    found = times(program, device)
    issued = sum(is_collective(n) for n in graph.nodes)
    assert found.seconds == times(program).seconds + 0.25 * issued
    (last,) = [span for span in found.spans if span.node is bucket]
    first_product = next(s for s in found.spans if s.node.target is aten.mm.default)
    assert first_product.start == last.end  # the second wait stands behind it and takes no time


@pytest.mark.parametrize(
    ("size", "seconds"),
    [(1, 0.0), (4, 3 * 2.0 + 5.0), (8, 7 * 2.0 + 5.0), (32, 7 * 2.0 + 3 * 1.0 + 0.0)],
)
def test_a_ring_takes_a_latency_a_step_and_the_slowest_link(size: int, seconds: float):
    device = replace(DEVICE, node=Link(2.0, 20.0))
    assert device.collective_seconds("all_gather", size, 100) == pytest.approx(seconds)


def test_measured_collectives_replace_the_formula():
    device = replace(DEVICE, collectives={"all_gather": Link(1.0, 50.0)}, measured_ranks=2)
    assert device.collective_seconds("all_gather", 2, 100) == 3.0
    assert device.collective_seconds("all_reduce", 2, 100) == pytest.approx(4.0)
    assert device.collective_seconds("all_gather", 4, 100) == pytest.approx(6.0)
