"""merge_common: what it merges, what it leaves, that memory does not grow and no bit changes."""

from collections.abc import Callable
from operator import getitem
from typing import Any

import pytest
import torch
from building import Build, built, neg, ops
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from random_losses import assert_same_bits
from torch import fx
from tracing import Shapes, physical, program_of, random_inputs
from zc.passes.merge_common import MergeCommon

from zc.capture.random_ops import UNIFORM
from zc.program.edit import Editor
from zc.program.liveness import memory_timeline, peak_by_phase
from zc.program.loops import ACCUMULATOR, BEGIN, END
from zc.program.program import Program
from zc.program.stamps import BACKWARD
from zc.run.lockstep import lockstep
from zc.verify import verify

aten: Any = torch.ops.aten
Tensors = dict[str, torch.Tensor]


def merged(build: Build, shape: tuple[int, ...] = (4, 4)) -> Program:
    program = built(build, shape)
    MergeCommon().run(program)
    verify(program)
    return program


def test_a_step(golden: Callable[..., None]):
    """The mask of two layers, a cast for two products, and transposes of one weight."""

    def layer(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(4, 4, dtype=torch.bool).tril()
        scores = (h @ h.t()).masked_fill(~mask, -1e9).softmax(-1)
        return torch.tanh((scores @ h).bfloat16() @ w.bfloat16().t()).float() + h.bfloat16().sum()

    def loss(p: Tensors, x: Tensors) -> torch.Tensor:
        return layer(layer(x["x"], p["w0"]), p["w0"]).sum()

    program = physical(program_of(loss, {"w0": (8, 8)}, {"x": (4, 8)}))
    MergeCommon().run(program)
    verify(program)
    golden(str(program), ".ir")


def twice(op: Any, *args: Any, **kwargs: Any) -> Build:
    """The sum of two equal calls of ``op`` on a value of the program."""

    def build(edit: Editor, x: fx.Node) -> fx.Node:
        value = neg(edit, x)
        one, other = (edit.call(op, value, *args, **kwargs) for _ in range(2))
        return edit.call(aten.add.Tensor, one, other)

    return build


MERGED: dict[str, Build] = {
    "pointwise": twice(aten.mul.Tensor, 2.0),
    "product": lambda e, x: e.call(
        aten.add.Tensor, *(e.call(aten.mm.default, neg(e, x), x) for _ in range(2))
    ),
    "cast": twice(aten._to_copy.default, dtype=torch.bfloat16),
    "view": twice(aten.view.default, [2, 8]),
    "transpose": twice(aten.t.default),
    "reduction": twice(aten.sum.dim_IntList, [0], keepdim=True),
    "copy": twice(aten.clone.default),
}


@pytest.mark.parametrize("name", MERGED)
def test_merged(name: str):
    before, after = ops(built(MERGED[name])), ops(merged(MERGED[name]))
    assert len(after) == len(set(before)) < len(before)


def test_items_of_a_result():
    def build(edit: Editor, x: fx.Node) -> fx.Node:
        tops = [edit.call(aten.topk.default, x, 2) for _ in range(2)]
        values = [edit.call(getitem, top, 0) for top in tops]
        return edit.call(aten.add.Tensor, *values)

    program = merged(build)
    assert ops(program) == ["topk", "add"]
    assert len(program.graph.find_nodes(op="call_function", target=getitem)) == 1


def both(left: Callable[..., fx.Node], right: Callable[..., fx.Node]) -> Build:
    return lambda edit, x: edit.call(aten.add.Tensor, left(edit, x), right(edit, x))


def written_between(edit: Editor, x: fx.Node) -> list[fx.Node]:
    total = edit.call(aten.zeros_like.default, x)
    one = neg(edit, total)
    total = edit.call(aten.add_.Tensor, total, x)
    return [one, neg(edit, total)]


def written_results(edit: Editor, x: fx.Node) -> fx.Node:
    """Each is added to on its own."""
    one, other = (edit.call(aten.zeros_like.default, x) for _ in range(2))
    one = edit.call(aten.add_.Tensor, one, x)
    other = edit.call(aten.mul_.Tensor, other, x)
    return edit.call(aten.add.Tensor, one, other)


def drawn(edit: Editor, x: fx.Node) -> fx.Node:
    seed = edit.call(aten.zeros.default, [], dtype=torch.int64)
    draw = (UNIFORM, seed, 0, [4, 4], torch.float32, torch.device("cpu"))
    return edit.call(aten.add.Tensor, edit.call(*draw), edit.call(*draw))


def in_a_loop(edit: Editor, x: fx.Node) -> fx.Node:
    """What stands before the loop is not kept through its turns."""
    before = neg(edit, x)
    total = edit.call(ACCUMULATOR, [4, 4], torch.float32, torch.device("cpu"))
    begin = edit.call(BEGIN, 2)
    total = edit.call(aten.add_.Tensor, total, neg(edit, x))
    edit.call(END, begin)
    return edit.call(aten.add.Tensor, total, before)


def in_another_phase(edit: Editor, x: fx.Node) -> fx.Node:
    one = neg(edit, x)
    with edit.after(one, phase=BACKWARD):
        return edit.call(aten.mul.Tensor, one, neg(edit, x))


def in_another_turn(edit: Editor, x: fx.Node) -> list[fx.Node]:
    one = neg(edit, x)
    with edit.after(one, phase=BACKWARD):
        gradient = edit.call(aten.mul.Tensor, one, x)
    with edit.after(gradient, phase="forward"):
        return [gradient, edit.call(aten.add.Tensor, neg(edit, x), x)]


LEFT: dict[str, Build] = {
    "other constants": both(
        lambda e, x: e.call(aten.mul.Tensor, x, 2.0), lambda e, x: e.call(aten.mul.Tensor, x, 2)
    ),
    "zeros of two signs": both(
        lambda e, x: e.call(aten.add.Tensor, x, 0.0), lambda e, x: e.call(aten.add.Tensor, x, -0.0)
    ),
    "memory that was written between": written_between,
    "results that are written": written_results,
    "random numbers": drawn,
    "uninitialised memory": both(*[lambda e, x: e.call(aten.empty_like.default, x)] * 2),
    "before a loop and in it": in_a_loop,
    "another phase": in_another_phase,
    "another turn": in_another_turn,
    "two returned values": lambda e, x: [neg(e, x), neg(e, x)],
}


@pytest.mark.parametrize("name", LEFT)
def test_left(name: str):
    assert ops(merged(LEFT[name])) == ops(built(LEFT[name]))


def far_apart(width: int) -> Build:
    """Two equal values of 16 KiB with nothing between their lives but ``width`` columns."""

    def build(edit: Editor, x: fx.Node) -> fx.Node:
        row = edit.call(aten.slice.Tensor, x, 0, 0, 1)
        sums = []
        for _ in range(2):
            large = edit.call(aten.expand.default, row, [64, 64])
            large = edit.call(aten.mul.Tensor, large, 3.0)
            sums.append(edit.call(aten.sum.default, large))
            between = edit.call(aten.zeros.default, [width, 64])
            sums.append(edit.call(aten.sum.default, between))
        total = sums[0]
        for part in sums[1:]:
            total = edit.call(aten.add.Tensor, total, part)
        return total

    return build


def test_a_value_lives_on_below_the_peak_only():
    """16 KiB through a stretch of 25 KiB: fine beside a peak of 48, not where 25 is the peak."""

    def peak_later(edit: Editor, x: fx.Node) -> fx.Node:
        total = far_apart(100)(edit, x)
        high = edit.call(aten.sum.default, edit.call(aten.zeros.default, [192, 64]))
        return edit.call(aten.add.Tensor, total, high)

    assert ops(merged(peak_later, (1, 64))).count("mul") == 1
    assert ops(merged(far_apart(100), (1, 64))).count("mul") == 2
    for build in (peak_later, far_apart(100)):
        before, after = built(build, (1, 64)), merged(build, (1, 64))
        assert peak_by_phase(after.graph) == peak_by_phase(before.graph)


STEPS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "twice": lambda h, w: torch.tanh(h @ w) * torch.tanh(h @ w),
    "casts": lambda h, w: h.bfloat16().float() + (h.bfloat16() @ w.bfloat16()).float(),
    "masked": lambda h, w: h * torch.ones(h.shape).tril() + w.square().sum(),
    "transposed": lambda h, w: (h @ w.t() + h @ w.t()) / 2,
    "normed": lambda h, w: h @ (w / (1 + w.norm())) + w.norm(),
    "views": lambda h, w: h.view(-1).view(h.shape) + h.t().contiguous().t() @ w,
}
PARAMS: Shapes = {"w0": (8, 8), "w1": (8, 8)}


@settings(max_examples=10, phases=(Phase.explicit, Phase.generate))
@given(
    steps=st.lists(st.sampled_from(list(STEPS)), min_size=2, max_size=6),
    zero_stage=st.sampled_from([0, 1, 3]),
    count=st.sampled_from([0, 2]),
    seed=st.integers(0, 99),
)
def test_no_bit_changes_and_no_peak_rises(steps: list[str], zero_stage: int, count: int, seed: int):
    def loss(p: Tensors, x: Tensors) -> torch.Tensor:
        hidden = STEPS["twice"](x["x"], p["w1"])  # there is always something to merge
        for i, step in enumerate(steps):
            hidden = STEPS[step](hidden, p[f"w{i % 2}"])
        return hidden.square().mean()

    inputs = {"x": (8, 8)}
    program = program_of(loss, PARAMS, inputs, 2, count=count, sharded=zero_stage > 0)
    physical(program, zero_stage)
    values = random_inputs(program, inputs, seed)
    before, nodes = lockstep(program, values), len(program.graph.nodes)
    peaks = peak_by_phase(program.graph)
    MergeCommon().run(program)
    verify(program)
    assert_same_bits(lockstep(program, values), before)
    assert len(program.graph.nodes) < nodes
    assert all(found <= peaks[phase] for phase, found in peak_by_phase(program.graph).items())


def test_no_node_has_more_bytes_live_where_the_first_value_still_lives():
    def build(edit: Editor, x: fx.Node) -> fx.Node:
        value, again = (edit.call(aten.mul.Tensor, x, 2.0) for _ in range(2))
        return edit.call(aten.add.Tensor, edit.call(aten.mm.default, value, again), value)

    live = {p.node.name: p.live_bytes for p in memory_timeline(built(build).graph)}
    for point in memory_timeline(merged(build).graph):
        assert point.live_bytes <= live[point.node.name]
