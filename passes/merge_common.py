"""Compute once what is computed again from the same values: common subexpressions.

before:
  %mask: bool[16, 16] = aten.tril(%ones)
  ...
  %mask_1: bool[16, 16] = aten.tril(%ones)
after:
  (readers of %mask_1 read %mask)

Two nodes are merged when they call the same aten op on the same values and constants, in the same
phase, the same turn of forward and backward, and the same loop: backward's own copies (gathered
again, recomputed) stay its own. Random numbers, collectives, writes, what reads memory that is
written to, and what the caller must get in a storage of its own are left alone.

Memory does not grow. Where the first value is still live at the second, live bytes fall or stay at
every node. Where it has died, living on must fit under the peak of the phase as predicted before
the pass (zc.program.headroom); otherwise the value is computed again, and serves what comes next.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx

from zc.program.analysis import is_pure, turns, written_storages
from zc.program.edit import erase_dead
from zc.program.headroom import Headroom, live_on
from zc.program.loops import loop_by_node
from zc.program.nodes import value_of
from zc.program.outside import Outside
from zc.program.pass_base import Kind, Pass
from zc.program.program import Program
from zc.program.stamps import stamp_of
from zc.program.storages import storages_of
from zc.program.types import has_unbacked, retype_views


@dataclass(frozen=True)
class MergeCommon(Pass):
    """Equal ops on equal operands are computed once, where that takes no more memory."""

    kind: ClassVar[Kind] = "optional"

    def run(self, program: Program) -> None:
        """Let readers of what was computed before read that; one walk in program order."""
        outside, room = Outside.of(program), None
        written = written_storages(program.graph)
        loops, turn = loop_by_node(program.graph), turns(program.graph)
        first: dict[Hashable, fx.Node] = {}
        for node in list(program.graph.nodes):
            if not node.users or not may_be_shared(node, written):
                continue
            scope = stamp_of(node).phase, turn[node], loops.get(node)
            key = scope, node.target, constant(node.args), constant(node.kwargs)
            earlier = first.setdefault(key, node)
            if earlier is node or not outside.may_replace(node, earlier):
                continue
            room = room or Headroom(program.graph)  # of the graph as it came
            if not live_on(outside, room, earlier, node):
                first[key] = node
                continue
            outside.replace(node, earlier)
            node.replace_all_uses_with(earlier)
            erase_dead(program.graph, [node])
        retype_views(program, program.graph, outside.readers)


def may_be_shared(node: fx.Node, written: set[int]) -> bool:
    """Whether ``node``, computed again anywhere in its scope, would be the same and cost as much.

    Sizes that depend on data are new symbols each time; memory that is written to changes.
    """
    if not is_pure(node) or has_unbacked(value_of(node)):
        return False
    return not any(k in written for n in (node, *node.all_input_nodes) for k in storages_of(n))


def constant(value: Any) -> Hashable:
    """An argument as a key: nodes as they are, constants by type and text (1 is not 1.0)."""
    if isinstance(value, fx.Node):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(map(constant, value))
    if isinstance(value, dict):
        return tuple((name, constant(item)) for name, item in sorted(value.items()))
    return type(value), repr(value)
