"""Update kernels that read their numbers from tables: which, and how they look."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from update.lockstep_update import SimulatedRanks
from zc.passes.lower_update import LowerUpdate

from zc.program.kernels import FUSED_UPDATE
from zc.run.number_tables import UPDATE_FROM, put_numbers_in_tables

KEPT: dict[str, Any] = {
    "no number of the host": lambda node: (*node.args[:2], [0.5, 0.9], *node.args[3:]),
    "stochastic rounding": lambda node: (*node.args, [1, 1, 0, 0], "dp"),
}


def lowered() -> Any:
    ranks = SimulatedRanks(2, [torch.zeros(32, 4)], lambda p: torch.optim.SGD(p, lr=0.1))
    program, _ = ranks.program()
    LowerUpdate().run(program)
    return program


def test_a_kernel_with_a_table(golden: Callable[..., None]):
    program = lowered()
    put_numbers_in_tables(program, program.graph)
    program.graph.lint()
    golden(str(program))


@pytest.mark.parametrize("name", KEPT)
def test_kernels_that_keep_their_arguments(name: str):
    program = lowered()
    (node,) = program.graph.find_nodes(op="call_function", target=FUSED_UPDATE)
    node.args = KEPT[name](node)
    before = str(program)
    put_numbers_in_tables(program, program.graph)
    assert str(program) == before
    assert not program.graph.find_nodes(op="call_function", target=UPDATE_FROM)
