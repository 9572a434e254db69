"""Headroom: the least of a stretch, against a plain list; and how long storages live."""

from typing import Any

import torch
from building import built, neg
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import fx
from tracing import physical, program_of

from zc.program.edit import Editor
from zc.program.headroom import Headroom, LeastTree
from zc.program.liveness import lives_of, memory_timeline
from zc.program.nodes import tensors_of
from zc.program.storages import storages_of

aten: Any = torch.ops.aten
numbers = st.lists(st.integers(-50, 50), min_size=1, max_size=20)
stretches = st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19), st.integers(-9, 9)))


@settings(max_examples=100, phases=(Phase.explicit, Phase.generate))
@given(values=numbers, changes=stretches)
def test_least_of_a_stretch(values: list[int], changes: list[tuple[int, int, int]]):
    tree = LeastTree(values)
    for left, right, amount in changes:
        begin, end = sorted((left % len(values), right % len(values)))
        tree.add(begin, end + 1, amount)
        values[begin : end + 1] = [value + amount for value in values[begin : end + 1]]
        assert tree.least(begin, end + 1) == min(values[begin : end + 1])
        assert tree.least(0, len(values)) == min(values)


def test_lives_add_up_to_live_bytes():
    """Of a step with views and collectives; scratch of reductions is no storage."""

    def loss(p: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.tanh(torch.tanh(x["x"] @ p["w0"].t()) @ p["w1"]).sum()

    graph = physical(program_of(loss, {"w0": (8, 4), "w1": (8, 4)}, {"x": (4, 4)})).graph
    order = {node: i for i, node in enumerate(graph.nodes)}
    lives, sizes = lives_of(graph), {}
    for node in graph.nodes:
        sizes |= storages_of(node)
    inputs = {k for n in graph.find_nodes(op="placeholder") for k in storages_of(n)}
    held = sum(sizes[key] for key in inputs)
    for point in memory_timeline(graph):
        at = order[point.node]
        live = [k for k, x in lives.items() if x.first <= at <= x.last and k not in inputs]
        scratch = point.live_bytes - held - sum(sizes[key] for key in live)
        assert scratch == 0 or "grad" in point.node.name


def test_what_was_granted_counts_as_used():
    """Two values of 64 bytes that die early, below a peak of three such values."""

    def build(edit: Editor, x: fx.Node) -> fx.Node:
        sums = [edit.call(aten.sum.default, neg(edit, x)) for _ in range(2)]
        total = edit.call(aten.add.Tensor, *sums)
        late = edit.call(aten.add.Tensor, x, total)
        return edit.call(aten.mul.Tensor, edit.call(aten.neg.default, late), late)

    graph = built(build).graph
    keys = {n.name: t.untyped_storage()._cdata for n in graph.nodes for t in tensors_of(n)}
    first, second, late = keys["neg"], keys["neg_1"], keys["add_1"]
    room = Headroom(graph)
    assert room.fits(second, late, 128, 128)
    assert not room.fits(second, late, 128, 64)  # larger than what it takes the place of
    assert room.fits(first, late, 64, 64)
    room.keep(first, late, 64, 64)
    assert room.lives[first][1] == room.lives[late][1]
    assert not room.fits(second, late, 128, 128)
    assert room.fits(second, late, 64, 64)
