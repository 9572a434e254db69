"""clean_graph: what lives longer in the place of a copy, or of a cast made again."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from building import built, neg, ops
from torch import fx
from zc.passes.clean_graph import CleanGraph

from zc.program.edit import Editor
from zc.program.liveness import peak_by_phase
from zc.program.program import Program
from zc.verify import verify

aten: Any = torch.ops.aten


def zeros(edit: Editor, rows: int) -> fx.Node:
    """A number that takes ``rows`` times 256 bytes for a moment."""
    return edit.call(aten.sum.default, edit.call(aten.zeros.default, [rows, 64]))


def summed_cast(edit: Editor, value: fx.Node) -> fx.Node:
    cast = edit.call(aten._to_copy.default, value, dtype=torch.bfloat16)
    return edit.call(aten.sum.default, cast)


def cast_again(edit: Editor, x: fx.Node) -> list[fx.Node]:
    """16 KiB, and as much again behind 25 KiB of other values."""
    large = edit.call(aten.expand.default, x, [128, 64])
    return [summed_cast(edit, large), zeros(edit, 100), summed_cast(edit, large)]


def copy_of_a_row(edit: Editor, x: fx.Node) -> list[fx.Node]:
    """The row is read behind 25 KiB of other values, the 16 KiB that it is of before."""
    large = edit.call(aten.mul.Tensor, edit.call(aten.expand.default, x, [64, 64]), 3.0)
    row = edit.call(aten.clone.default, edit.call(aten.slice.Tensor, large, 0, 0, 1))
    first = edit.call(aten.sum.default, large)
    return [first, zeros(edit, 100), neg(edit, row)]


def cleaned(build: Callable[..., list[fx.Node]]) -> Program:
    program = built(build, (1, 64))
    CleanGraph().run(program)
    verify(program)
    return program


@pytest.mark.parametrize("build", [cast_again, copy_of_a_row])
def test_a_value_lives_on_below_the_peak_only(build: Callable[..., list[fx.Node]]):
    """16 KiB fit through a stretch of 25 KiB beside a peak of 48, not where 25 is the peak."""

    def peak_later(edit: Editor, x: fx.Node) -> list[fx.Node]:
        return [*build(edit, x), zeros(edit, 192)]

    kept, gone = cleaned(build), cleaned(peak_later)
    assert ops(kept) == ops(built(build, (1, 64)))
    assert len(ops(gone)) == len(ops(kept)) + 1  # two for the peak, one less
    for some, program in ((build, kept), (peak_later, gone)):
        assert peak_by_phase(program.graph) == peak_by_phase(built(some, (1, 64)).graph)
