"""The loop over micro-batches: a part of a graph that runs several times.

    %w_grad_sum: f32[8, 4] = zc.accumulator([8, 4], f32, cpu)
    %micro: number = zc.micro_begin(4)
      %x_micro: f32[2, 4] = zc.micro_slice(%x, %micro, 4)
      ...
      %w_grad_add: f32[8, 4] = aten.add_.Tensor(%w_grad_sum, %w_grad, alpha=0.25)
    %micro_end: none = zc.micro_end(%micro)
    return %w_grad_add

Program and loop are one graph: what stands between begin and end is the body, and moving a node
over a mark moves it into the loop or out of it. Values of the body die with their turn; what
outlives it was written to storage from before the loop (accumulators, buffers) and is read as the
result of that write. The types of a body are those of its first turn.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

_library = torch.library.Library("zc", "FRAGMENT")
_library.define("micro_begin(int count) -> int")
_library.define("micro_end(int index) -> ()")
_library.define("micro_slice(Tensor(a) batch, int index, int count) -> Tensor(a)")
_library.define("accumulator(SymInt[] size, ScalarType dtype, Device device) -> Tensor")
BEGIN: Any = torch.ops.zc.micro_begin.default
END: Any = torch.ops.zc.micro_end.default
SLICE: Any = torch.ops.zc.micro_slice.default
ACCUMULATOR: Any = torch.ops.zc.accumulator.default
for _mark in (BEGIN, END):
    fx.node.has_side_effect(_mark)


@torch.library.register_fake("zc::micro_begin")
def _begin_type(count: int) -> int:
    return 0


@torch.library.register_fake("zc::micro_end")
def _end_type(index: int) -> None:
    return None


@torch.library.register_fake("zc::micro_slice")
def _slice(batch: torch.Tensor, index: int, count: int) -> torch.Tensor:
    rows = batch.shape[0] // count
    return batch.narrow(0, index * rows, rows)


@torch.library.register_fake("zc::accumulator")
def _accumulator(size: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.zeros(size, dtype=dtype, device=device)


_library.impl("micro_slice", _slice, "CompositeExplicitAutograd")
_library.impl("accumulator", _accumulator, "CompositeExplicitAutograd")


@dataclass(frozen=True)
class Loop:
    """One loop of a graph: its marks, and the nodes between them in order."""

    begin: fx.Node
    end: fx.Node
    body: tuple[fx.Node, ...]

    @property
    def count(self) -> int:
        """How many turns the body takes."""
        return int(self.begin.args[0])  # type: ignore[arg-type]


def loops_of(graph: fx.Graph) -> list[Loop]:
    """The loops of ``graph``, in order; a begin without its end is none."""
    found = []
    for end in graph.find_nodes(op="call_function", target=END):
        begin: Any = end.args[0]
        body: list[fx.Node] = []
        node = end.prev
        while node is not begin and node.op != "root":
            body.append(node)
            node = node.prev
        if node is begin:
            found.append(Loop(begin, end, tuple(reversed(body))))
    return found


def loop_by_node(graph: fx.Graph) -> dict[fx.Node, Loop]:
    """The loop of each node that stands in one; marks stand outside."""
    return {node: loop for loop in loops_of(graph) for node in loop.body}


def as_executed(graph: fx.Graph) -> Iterator[tuple[fx.Node, int]]:
    """All nodes in the order in which they run, those of a body once a turn.

    With each comes the number of the turn, which is the value of the loop's begin.
    """
    inside = loop_by_node(graph)
    loops = {loop.begin: loop for loop in loops_of(graph)}
    for node in graph.nodes:
        if node in loops:
            for turn in range(loops[node].count):
                yield node, turn
                yield from ((inner, turn) for inner in loops[node].body)
        elif node not in inside:
            yield node, 0


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that a sum over micro-batches is kept in: ``dtype`` or fp32, whichever is wider.

    Whole numbers are added as 64-bit ones.
    """
    if dtype.is_floating_point or dtype.is_complex:
        return torch.promote_types(dtype, torch.float32)
    return torch.int64
