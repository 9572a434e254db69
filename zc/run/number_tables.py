"""Numbers of update kernels in device memory, so that a recorded launch reads those of each call.

before:  %fused_update: none = zc.fused_update([%w], [%w_grad], [%neg, 0.9], "sgd_1f2e", "auto")
after:   %numbers: f64[2] = zc.numbers_on([%neg, 0.9], cuda)
         %update_from: none = zc.update_from([%w], [%w_grad], %numbers, "sgd_1f2e", "auto")
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from zc.codegen.tables import table_of
from zc.program.edit import Editor
from zc.program.kernels import FUSED_UPDATE
from zc.program.nodes import value_of
from zc.program.program import Program
from zc.run.kernels import usable_target

_library = torch.library.Library("zc", "FRAGMENT")
_library.define("numbers_on(float[] numbers, Device device) -> Tensor")
_library.define(
    "update_from(Tensor(a!)[] written, Tensor[] read, Tensor numbers, str kernel, str target) -> ()"
)
NUMBERS_ON: Any = torch.ops.zc.numbers_on.default
UPDATE_FROM: Any = torch.ops.zc.update_from.default


@torch.library.register_fake("zc::numbers_on")
def _type_of_numbers(numbers: Sequence[float], device: torch.device) -> torch.Tensor:
    return torch.empty(len(numbers), dtype=torch.float64, device=device)


@torch.library.register_fake("zc::update_from")
def _type_of_update(written: Any, read: Any, numbers: Any, kernel: str, target: str) -> None:
    return None


def _numbers_on(numbers: Sequence[float], device: torch.device) -> torch.Tensor:
    return table_of(numbers, torch.float64, device)


_library.impl("numbers_on", _numbers_on, "CompositeExplicitAutograd")


def put_numbers_in_tables(program: Program, graph: fx.Graph) -> None:
    """Let the kernels in ``graph`` that can, read their numbers from tables.

    A kernel that rounds stochastically needs more digits than a table has and keeps its arguments.
    """
    for node in graph.find_nodes(op="call_function", target=FUSED_UPDATE):
        written, read, numbers, kernel, target = node.args[:5]
        device = value_of(written[0]).device  # type: ignore[index, arg-type]
        on_host = any(isinstance(number, fx.Node) for number in numbers)  # type: ignore[union-attr]
        known = device.type == "cpu" or usable_target(str(target), device) == "triton"
        if len(node.args) > 5 or not (on_host and known):
            continue
        edit = Editor(program, graph, "cuda_graph")
        with edit.before(node):
            table = edit.call(NUMBERS_ON, numbers, device)
            edit.call(UPDATE_FROM, written, read, table, kernel, target)
        graph.erase_node(node)
