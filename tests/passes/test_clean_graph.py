"""clean_graph: what it removes, what the caller would miss, and that no bit changes."""

from collections.abc import Callable
from operator import getitem
from typing import Any

import pytest
import torch
from building import Build, built, neg, ops
from hypothesis import given, settings
from hypothesis import strategies as st
from random_losses import RandomLoss, assert_same_bits, random_losses
from torch import fx
from tracing import physical, program_of
from zc.passes.clean_graph import CleanGraph

from zc.program.edit import Editor
from zc.program.liveness import peak_by_phase
from zc.program.loops import ACCUMULATOR, BEGIN, END, SLICE
from zc.program.program import Program
from zc.program.stamps import BACKWARD
from zc.verify import verify

aten: Any = torch.ops.aten
Tensors = dict[str, torch.Tensor]


def cleaned(build: Build, shape: tuple[int, ...] = (4, 4)) -> Program:
    """What ``build`` computes from one input ``x``, after the pass."""
    program = built(build, shape)
    CleanGraph().run(program)
    verify(program)
    return program


def test_a_step(golden: Callable[..., None]):
    """What tracing leaves: detached copies, transposes of transposes, casts made twice."""

    def loss(p: Tensors, x: Tensors) -> torch.Tensor:
        hidden = torch.relu(x["x"].bfloat16() @ p["w0"].bfloat16().t())
        return (hidden @ p["w0"].bfloat16() * x["x"].bfloat16()).float().view(2, 8).sum()

    program = physical(program_of(loss, {"w0": (32, 8)}, {"x": (2, 8)}))
    CleanGraph().run(program)
    verify(program)
    golden(str(program), ".ir")


def copied(edit: Editor, x: fx.Node) -> fx.Node:
    empty = edit.call(aten.empty_like.default, x)
    return neg(edit, edit.call(aten.copy.default, empty, neg(edit, x)))


REMOVED: dict[str, Build] = {
    "detach": lambda e, x: neg(e, e.call(aten.detach.default, neg(e, x))),
    "alias": lambda e, x: neg(e, e.call(aten.alias.default, neg(e, x))),
    "view": lambda e, x: neg(e, e.call(aten.view.default, neg(e, x), [4, 4])),
    "expand": lambda e, x: neg(e, e.call(aten.expand.default, neg(e, x), [4, 4])),
    "slice": lambda e, x: neg(e, e.call(aten.slice.Tensor, neg(e, x), 0, 0, 4)),
    "clone": lambda e, x: neg(e, e.call(aten.clone.default, neg(e, x))),
    "cast": lambda e, x: neg(e, e.call(aten._to_copy.default, neg(e, x), dtype=torch.float32)),
    "double t": lambda e, x: neg(e, e.call(aten.t.default, e.call(aten.t.default, neg(e, x)))),
    "double transpose": lambda e, x: neg(
        e, e.call(aten.transpose.int, e.call(aten.transpose.int, neg(e, x), 0, 1), 0, 1)
    ),
    "permuted back": lambda e, x: neg(
        e, e.call(aten.permute.default, e.call(aten.permute.default, neg(e, x), [1, 0]), [1, 0])
    ),
    "copy": copied,
    "t and transpose": lambda e, x: neg(
        e, e.call(aten.transpose.int, e.call(aten.t.default, neg(e, x)), 0, 1)
    ),
    "three permutations": lambda e, x: neg(
        e,
        e.call(
            aten.permute.default,
            e.call(aten.t.default, e.call(aten.permute.default, neg(e, x), [0, 1])),
            [1, 0],
        ),
    ),
    "unsqueeze and squeeze": lambda e, x: neg(
        e, e.call(aten.squeeze.dim, e.call(aten.unsqueeze.default, neg(e, x), 1), 1)
    ),
    "views back and forth": lambda e, x: neg(
        e, e.call(aten.view.default, e.call(aten.view.default, neg(e, x), [2, 8]), [4, 4])
    ),
    "the one part of a split": lambda e, x: neg(
        e, e.call(getitem, e.call(aten.split.Tensor, neg(e, x), 4), 0)
    ),
    "padding by nothing": lambda e, x: neg(
        e, e.call(aten.constant_pad_nd.default, neg(e, x), [0, 0, 0, 0], 0.0)
    ),
    "repeated once": lambda e, x: neg(e, e.call(aten.repeat.default, neg(e, x), [1, 1])),
    "concatenated alone": lambda e, x: neg(e, e.call(aten.cat.default, [neg(e, x)])),
    "a transpose of a copy": lambda e, x: neg(
        e,
        e.call(aten.t.default, e.call(aten.clone.default, e.call(aten.t.default, neg(e, x)))),
    ),
    "dead code": lambda e, x: (e.call(aten.mm.default, x, neg(e, x)), neg(e, neg(e, x)))[1],
}


@pytest.mark.parametrize("name", REMOVED)
def test_removed(name: str):
    assert ops(cleaned(REMOVED[name])) == ["neg", "neg"]


def test_a_view_of_a_view_is_a_view_of_the_first():
    def build(edit: Editor, x: fx.Node) -> fx.Node:
        rows = edit.call(aten.view.default, neg(edit, x), [2, 8])
        return neg(edit, edit.call(aten.view.default, rows, [16]))

    program = cleaned(build)
    assert ops(program) == ["neg", "view", "neg"]
    (view,) = program.graph.find_nodes(op="call_function", target=aten.view.default)
    assert view.args[0].target is aten.neg.default


def test_a_cast_made_twice_is_made_once():
    def build(edit: Editor, x: fx.Node) -> fx.Node:
        one, other = (edit.call(aten._to_copy.default, x, dtype=torch.bfloat16) for _ in range(2))
        return edit.call(aten.mul.Tensor, one, other)

    assert ops(cleaned(build)) == ["_to_copy", "mul"]


def test_a_cast_of_another_phase_is_made_again():
    def build(edit: Editor, x: fx.Node) -> fx.Node:
        one = edit.call(aten._to_copy.default, x, dtype=torch.bfloat16)
        with edit.after(one, phase=BACKWARD):
            other = edit.call(aten._to_copy.default, x, dtype=torch.bfloat16)
            return edit.call(aten.mul.Tensor, one, other)

    assert ops(cleaned(build)) == ["_to_copy", "_to_copy", "mul"]


def written_later(edit: Editor, x: fx.Node) -> fx.Node:
    """A copy keeps the value that ``x`` had before."""
    copy = edit.call(aten.clone.default, x)
    edit.call(aten.copy_.default, x, edit.call(aten.zeros_like.default, x))
    return neg(edit, copy)


def written_copy(edit: Editor, x: fx.Node) -> fx.Node:
    """The source must not be written in the place of its copy."""
    value = neg(edit, x)
    zeros = edit.call(aten.zero_.default, edit.call(aten.clone.default, value))
    return edit.call(aten.add.Tensor, value, zeros)


def two_copies(edit: Editor, x: fx.Node) -> list[fx.Node]:
    """One of them may go, not both: the caller got two tensors."""
    value = neg(edit, x)
    return [edit.call(aten.clone.default, value) for _ in range(2)]


def two_copies_in_views(edit: Editor, x: fx.Node) -> list[fx.Node]:
    return [edit.call(aten.view.default, copy, [16]) for copy in two_copies(edit, x)]


def returned_twice(edit: Editor, x: fx.Node) -> list[fx.Node]:
    value = neg(edit, x)
    return [value, edit.call(aten.clone.default, value)]


def of_a_larger_value(edit: Editor, x: fx.Node) -> fx.Node:
    """Returned without its copy, a row would keep the whole value alive."""
    row = edit.call(aten.slice.Tensor, neg(edit, x), 0, 0, 1)
    return edit.call(aten.clone.default, row)


def each_micro_batch(edit: Editor, x: fx.Node) -> fx.Node:
    """A loop of one turn would take the whole batch; types do not tell which turn this is."""
    total = edit.call(ACCUMULATOR, [4, 4], torch.float32, torch.device("cpu"))
    begin = edit.call(BEGIN, 1)
    total = edit.call(aten.add_.Tensor, total, edit.call(SLICE, x, begin, 1))
    edit.call(END, begin)
    return total


KEPT: dict[str, tuple[Build, list[str]]] = {
    "a copy of what is written later": (
        written_later,
        ["clone", "zeros_like", "copy_", "neg"],
    ),
    "a copy of an input that is returned": (
        lambda e, x: e.call(aten.clone.default, x),
        ["clone"],
    ),
    "a copy of what is returned too": (returned_twice, ["neg", "clone"]),
    "a copy of an input, returned as a view": (
        lambda e, x: e.call(aten.view.default, e.call(aten.clone.default, x), [16]),
        ["clone", "view"],
    ),
    "a copy that is written": (written_copy, ["neg", "clone", "zero_", "add"]),
    "one of two copies": (two_copies, ["neg", "clone"]),
    "one of two copies in views": (two_copies_in_views, ["neg", "clone", "view", "view"]),
    "a copy of a row that is returned": (of_a_larger_value, ["neg", "slice", "clone"]),
    "a copy that changes strides": (
        lambda e, x: neg(
            e,
            e.call(
                aten.clone.default,
                e.call(aten.t.default, x),
                memory_format=torch.contiguous_format,
            ),
        ),
        ["t", "clone", "neg"],
    ),
    "a slice of less": (
        lambda e, x: neg(e, e.call(aten.slice.Tensor, x, 0, 0, 3)),
        ["slice", "neg"],
    ),
    "padding that shifts": (
        lambda e, x: neg(e, e.call(aten.constant_pad_nd.default, neg(e, x), [1, -1], 0.0)),
        ["neg", "constant_pad_nd", "neg"],
    ),
    "the other half of a split, of the same shape": (
        lambda e, x: e.call(
            aten.mul.Tensor,
            *(e.call(getitem, e.call(aten.split.Tensor, neg(e, x), 2), i) for i in (0, 1)),
        ),
        ["neg", "split", "neg", "split", "mul"],
    ),
    "a view of a view of what is not contiguous": (
        lambda e, x: neg(
            e,
            e.call(
                aten.view.default,
                e.call(aten.view.default, e.call(aten.t.default, neg(e, x)), [4, 2, 2]),
                [4, 4, 1],
            ),
        ),
        ["neg", "t", "view", "view", "neg"],
    ),
    "each micro-batch": (
        each_micro_batch,
        ["accumulator", "micro_begin", "micro_slice", "add_", "micro_end"],
    ),
    "another permutation": (
        lambda e, x: neg(
            e,
            e.call(aten.permute.default, e.call(aten.permute.default, x, [1, 2, 0]), [1, 2, 0]),
        ),
        ["permute", "permute", "neg"],
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_kept(name: str):
    build, expected = KEPT[name]
    shape = (4, 4, 4) if name == "another permutation" else (4, 4)
    assert ops(cleaned(build, shape)) == expected


@settings(max_examples=25)
@given(loss=random_losses, zero_stage=st.sampled_from([1, 3]))
def test_no_bit_changes_and_no_peak_rises(loss: RandomLoss, zero_stage: int):
    program = physical(loss.program(), zero_stage)
    before, peaks = loss.run(program), peak_by_phase(program.graph)
    CleanGraph().run(program)
    verify(program)
    assert_same_bits(before, loss.run(program))
    assert all(found <= peaks[phase] for phase, found in peak_by_phase(program.graph).items())


@settings(max_examples=10)
@given(loss=random_losses)
def test_a_second_run_changes_nothing(loss: RandomLoss):
    program = physical(loss.program())
    CleanGraph().run(program)
    once = str(program)
    CleanGraph().run(program)
    assert str(program) == once
