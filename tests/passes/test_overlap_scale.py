"""The passes of overlap on 100,000 nodes: CPU seconds, not minutes."""

import time
from dataclasses import replace

import pytest
import torch
from overlap import DEVICE
from tracing import physical, program_of
from zc.passes.delay_reductions import DelayReductions
from zc.passes.keep_gathered import KeepGathered
from zc.passes.prefetch_gathers import PrefetchGathers

from zc.cost.device import Link
from zc.program.liveness import peak_bytes
from zc.program.units import Bytes

LAYERS, OPS, NODES, SECONDS = 800, 32, 100_000, 120


def deep(p: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
    """Layers of one product and many small ops."""
    value = x["x"]
    for weight in p.values():
        value = value @ weight
        for _ in range(OPS):
            value = torch.tanh(value)
    return value.sum()


@pytest.mark.matrix
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_nodes_take_seconds(capsys: pytest.CaptureFixture[str]):
    params = {f"w{i}": (64, 64) for i in range(LAYERS)}
    program = physical(program_of(deep, params, {"x": (8, 64)}, 2), 3)
    program.device = replace(DEVICE, op_seconds=1e-6, node=Link(3e-5, 1e9))
    assert len(program.graph.nodes) >= NODES
    peak = peak_bytes(program.graph)
    passes = [KeepGathered(memory=Bytes("1MB")), PrefetchGathers(), DelayReductions()]
    for item in passes:
        start = time.process_time()
        item.run(program)
        took = time.process_time() - start
        with capsys.disabled():
            print(f"\n{took:.1f}s on {len(program.graph.nodes):,} nodes: {program.notes[-1]}")
        assert took < SECONDS  # minutes if any pass were quadratic
    assert peak_bytes(program.graph) <= peak + 1_000_000 + 4 * 64 * 64 * 4 + 10**5
