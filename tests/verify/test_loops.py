"""Loops over micro-batches that no program means, each with its full message."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx
from tracing import physical, program_of

from zc.errors import VerifyError
from zc.program.collectives import C10D, WAIT
from zc.program.edit import Editor
from zc.program.loops import ACCUMULATOR, BEGIN, END
from zc.program.program import Program
from zc.verify import verify

aten: Any = torch.ops.aten


def tiny() -> Program:
    """One parameter on two ranks, one product, two micro-batches, stage 3."""

    def loss(p: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
        return (x["x"] @ p["w"]).sum()

    return physical(program_of(loss, {"w": (8, 8)}, {"x": (4, 8)}, world=2, count=2))


def node(program: Program, name: str) -> fx.Node:
    return next(n for n in program.nodes() if n.name == name)


def insert(program: Program, before: str, target: Any, *args: Any) -> fx.Node:
    edit = Editor(program, program.graph, "mutation")
    with edit.before(node(program, before)):
        return edit.call(target, *args)


def begin_inside(program: Program) -> None:
    insert(program, "mm", BEGIN, 3)


def end_twice(program: Program) -> None:
    insert(program, "output", END, node(program, "micro"))


def never_end(program: Program) -> None:
    program.graph.erase_node(node(program, "micro_end"))


def read_behind(program: Program) -> None:
    insert(program, "output", aten.neg.default, node(program, "mm"))


def wait_behind(program: Program) -> None:
    wait = node(program, "w_grad")
    total = insert(program, "micro", ACCUMULATOR, [4, 8], torch.float32, torch.device("cpu"))
    node(program, "w_grad_add").replace_input_with(wait, total)
    node(program, "output").prepend(wait)


def wait_for_one_from_before(program: Program) -> None:
    gather = node(program, "w_gather")
    node(program, "micro").prepend(gather)


def write_a_parameter(program: Program) -> None:
    insert(program, "micro_end", aten.copy_.default, node(program, "w"), node(program, "w_grad"))


BROKEN: list[Callable[[Program], None]] = [
    begin_inside,
    end_twice,
    never_end,
    read_behind,
    wait_behind,
    wait_for_one_from_before,
    write_a_parameter,
]


def test_messages(golden: Callable[[str], None]):
    texts = []
    for break_it in BROKEN:
        program = tiny()
        verify(program)
        break_it(program)
        with pytest.raises(VerifyError) as error:
            verify(program)
        texts.append(f"## {break_it.__name__}\n{error.value}\n")
    golden("\n".join(texts))


def test_two_loops_are_allowed():
    program = tiny()
    begin = insert(program, "output", BEGIN, 2)
    insert(program, "output", END, begin)
    verify(program)


def test_nothing_starts_in_one_loop_and_ends_in_another():
    program = tiny()
    begin = insert(program, "output", BEGIN, 2)
    start = insert(program, "output", C10D.all_reduce.default, node(program, "w"), "avg", "dp")
    insert(program, "output", END, begin)
    begin = insert(program, "output", BEGIN, 2)
    insert(program, "output", WAIT, start)
    insert(program, "output", END, begin)
    with pytest.raises(VerifyError, match="on the other side of a loop's mark"):
        verify(program)
