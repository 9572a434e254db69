"""clean_graph, merge_common and recompute_pointwise take near-linear time in the nodes."""

import gc
import time
from typing import Any

import pytest
import torch
from building import built
from torch import fx
from zc.passes.clean_graph import CleanGraph
from zc.passes.merge_common import MergeCommon
from zc.passes.recompute_pointwise import RecomputePointwise

from zc.program.edit import Editor
from zc.program.pass_base import Pass
from zc.program.program import Program
from zc.program.stamps import BACKWARD
from zc.program.units import Bytes

aten: Any = torch.ops.aten
NODES_OF_A_LAYER = 27
FEW, MANY = 10_000, 100_000
RATIO = (
    1.6  # of the time per node, over ten times the nodes: a logarithm is 1.25, the rest is noise
)
PASSES: list[Pass] = [CleanGraph(), MergeCommon(), RecomputePointwise(smallest=Bytes(0))]


def layers(count: int) -> Program:
    """A residual network of ``count`` layers with something to do for each pass in each layer."""

    def build(edit: Editor, x: fx.Node) -> list[fx.Node]:
        hidden, kept = edit.call(aten.mm.default, x, x), []
        for _ in range(count):
            hidden = forward_layer(edit, hidden, x, kept)
        edit.stamp = type(edit.stamp)(phase=BACKWARD, made_by="test")
        gradient = edit.call(aten.ones_like.default, hidden)
        for values in reversed(kept):
            gradient = backward_layer(edit, gradient, *values)
        return [gradient]

    return built(build)


def forward_layer(edit: Editor, hidden: fx.Node, x: fx.Node, kept: list[Any]) -> fx.Node:
    back = edit.call(aten.t.default, edit.call(aten.t.default, hidden))
    mask = edit.call(aten.tril.default, edit.call(aten.ones.default, [4, 4]))
    product = edit.call(aten.mm.default, edit.call(aten.mul.Tensor, back, mask), x)
    flat = edit.call(aten.view.default, edit.call(aten.view.default, product, [16]), [2, 8])
    gelu = edit.call(aten.gelu.default, edit.call(aten.view.default, flat, [4, 4]))
    gate = edit.call(aten.sigmoid.default, edit.call(aten.neg.default, product))
    gated = edit.call(aten.mul.Tensor, gelu, gate)
    kept.append((product, gelu, gate, gated))
    return edit.call(aten.add.Tensor, hidden, edit.call(aten.mm.default, gated, x))


def backward_layer(edit: Editor, gradient: fx.Node, *values: fx.Node) -> fx.Node:
    product, gelu, gate, gated = values
    one = edit.call(aten.mm.default, edit.call(aten.detach.default, gradient), gated)
    other = edit.call(aten.mul.Tensor, one, gelu)
    again = edit.call(aten.mul.Tensor, edit.call(aten.mul.Tensor, one, gelu), gate)
    whole = edit.call(aten.gelu_backward.default, edit.call(aten.add.Tensor, other, again), product)
    return edit.call(aten.add.Tensor, gradient, whole)


def microseconds_a_node(count: int) -> dict[str, float]:
    """CPU time of each pass."""
    program, found = layers(count // NODES_OF_A_LAYER), {}
    gc.collect()
    gc.disable()
    for item in PASSES:
        nodes, start = len(program.graph.nodes), time.process_time()
        item.run(program)
        found[item.name] = 1e6 * (time.process_time() - start) / nodes
    gc.enable()
    return found


@pytest.mark.matrix
@pytest.mark.timeout(900)
def test_the_time_per_node_does_not_grow() -> None:
    few, many = microseconds_a_node(FEW), microseconds_a_node(MANY)
    assert {name: many[name] <= RATIO * few[name] for name in few} == dict.fromkeys(few, True)
