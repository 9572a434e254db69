"""Micro-batches: what was traced between two markers becomes the body of a loop.

before:  %micro_split = zc.micro_split([%x], 4);  %getitem = getitem(%micro_split, 0)
         ...
         %w_grad = zc.grad(%mm, ...)
         %micro_join = zc.micro_join([%loss], 4, "mean");  %getitem_1 = getitem(%micro_join, 0)
         return %getitem_1, %w_grad
after:   %w_grad_sum = zc.accumulator([8, 4], f32, cpu)
         %loss_sum = zc.accumulator([], f32, cpu)
         %micro = zc.micro_begin(4)
           %x_micro = zc.micro_slice(%x, %micro, 4)
           ...
           %w_grad = zc.grad(%mm, ...)
           %w_grad_add = aten.add_.Tensor(%w_grad_sum, %w_grad, alpha=0.25)
           %loss_add = aten.add_.Tensor(%loss_sum, %loss, alpha=0.25)
         %micro_end = zc.micro_end(%micro)
         return %loss_add, %w_grad_add

What is computed from parameters alone moves in front of the loop; what adds gradients to older ones
moves behind it; buffers are written at each turn.
"""

from collections.abc import Iterator
from typing import Any

from torch import fx

from zc.capture.loop_results import (
    Traced,
    refuse_parameter_writes,
    sum_gradients,
    sum_losses,
    write_buffers,
)
from zc.errors import CaptureError
from zc.program.analysis import parameter_sources
from zc.program.edit import Editor
from zc.program.loops import BEGIN, END, SLICE
from zc.program.printer import print_node
from zc.program.program import Program
from zc.program.stamps import BACKWARD, place_of
from zc.program.storages import storages_of
from zc.state.microbatches import JOIN, SPLIT


def make_loops(program: Program) -> dict[fx.Node, str]:
    """Turn each traced ``zc.microbatches`` into a loop, in place.

    Returns:
        The gradients that loops have summed, and the parameter of each.

    Raises:
        CaptureError: for a function that cannot be the body of a loop.
    """
    sums: dict[fx.Node, str] = {}
    for split, join in _calls(program):
        traced = Traced(program, Editor(program, program.graph, "capture"), split, join)
        refuse_parameter_writes(traced)
        _hoist(traced)
        _begin(traced)
        sums |= sum_gradients(traced, sums)
        sum_losses(traced)
        write_buffers(traced)
        with traced.edit.before(join, phase=BACKWARD):
            traced.edit.call(END, traced.begin)
        _refuse_leaks(traced)
        program.graph.erase_node(join)
    return sums


def _calls(program: Program) -> Iterator[tuple[fx.Node, fx.Node]]:
    marks = [n for n in program.graph.nodes if n.target in (SPLIT, JOIN)]
    for split, join in zip(marks[::2], marks[1::2], strict=True):
        if join.target is not JOIN:
            raise CaptureError(
                f"zc.microbatches is called inside the function of another zc.microbatches "
                f"({place_of(join) or program.name}); call it once, with the product of both counts"
            )
        yield split, join


def _hoist(traced: Traced) -> None:
    """Move what is computed from parameters alone, and what that needs, in front of the loop."""
    body = traced.body()
    inside, sources = set(body), parameter_sources(traced.program.graph)
    wanted = {n for n in body if n.op == "get_attr" or n in sources}
    pending = list(wanted)
    while pending:
        needed = [n for n in pending.pop().all_input_nodes if n in inside and n not in wanted]
        wanted.update(needed)
        pending += needed
    for node in body:
        if node in wanted:
            traced.begin.prepend(node)


def _begin(traced: Traced) -> None:
    """Put the begin of the loop and the slices of the batch in place of the marker."""
    marker, edit = traced.begin, traced.edit
    batch: Any = marker.args[0]
    with edit.before(marker):
        traced.begin = edit.call(BEGIN, traced.count, name="micro")
        for item in list(marker.users):
            source = batch[item.args[1]]
            name = f"{source.name}_micro"
            part = edit.call(SLICE, source, traced.begin, traced.count, name=name)
            item.replace_all_uses_with(part)
            traced.program.graph.erase_node(item)
    traced.program.graph.erase_node(marker)


def _refuse_leaks(traced: Traced) -> None:
    """A value of one micro-batch has no meaning behind the loop."""
    body = traced.body()
    inside = set(body)
    before = {key for node in traced.outside() for key in storages_of(node)}
    for node in body:
        for user in node.users:
            if user in inside or user is traced.join or before.issuperset(storages_of(node)):
                continue
            way = "leaves the compiled function"
            if user.op != "output":
                way = f"is read behind zc.microbatches, by {print_node(user)}"
            raise CaptureError(
                f"{print_node(node)} ({place_of(node) or 'no source line'}) belongs to one "
                f"micro-batch and {way}; return what you need from the function of "
                f"zc.microbatches, as a 0-d tensor that can be added up"
            )
