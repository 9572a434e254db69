"""Several collectives as one: a bucket, with an item for each.

before:  %w0_gather: f32[8, 4] = c10d.all_gather_into_tensor(%w0, 4, "dp")
         %w0_full: f32[8, 4] = c10d.wait_tensor(%w0_gather)
         %w1_gather: f32[8, 8] = c10d.all_gather_into_tensor(%w1, 4, "dp")
         %w1_full: f32[8, 8] = c10d.wait_tensor(%w1_gather)
after:   %w0_gather_bucket = c10d.all_gather_into_tensor_coalesced([%w0, %w1], 4, "dp")
         %w0_gather_item: f32[8, 4] = getitem(%w0_gather_bucket, 0)
         %w1_gather_item: f32[8, 8] = getitem(%w0_gather_bucket, 1)
         %w0_full: f32[8, 4] = c10d.wait_tensor(%w0_gather_item)
         %w1_full: f32[8, 8] = c10d.wait_tensor(%w1_gather_item)

The first wait completes a bucket.
"""

from operator import getitem
from typing import Any

from torch import fx

from zc.program.analysis import turns
from zc.program.collectives import C10D, COLLECTIVES, is_collective, is_wait
from zc.program.edit import Editor
from zc.program.loops import BEGIN, END
from zc.program.nodes import value_of
from zc.program.stamps import UPDATE, restamp, stamp_of

COALESCED: dict[Any, Any] = {
    C10D.all_gather_into_tensor.default: C10D.all_gather_into_tensor_coalesced.default,
    C10D.reduce_scatter_tensor.default: C10D.reduce_scatter_tensor_coalesced.default,
    C10D.all_reduce.default: C10D.all_reduce_coalesced.default,
}


def candidates(graph: fx.Graph, lane: str) -> dict[fx.Node, Any]:
    """Collectives of ``lane`` that may be part of a bucket, in order, with what a bucket shares.

    That is op, reduction, axis, dtype, device and phase, and the stretch of the program: one turn
    of forward or backward, inside or outside of a loop over micro-batches. Not the user's own ones,
    and not an optimizer's, which needs each result at once.
    """
    found: dict[fx.Node, Any] = {}
    turn, marks = turns(graph), 0
    for node in graph.nodes:
        marks += node.target in (BEGIN, END)
        if node.target in COALESCED and COLLECTIVES[node.target].lane == lane and _is_ours(node):
            value = value_of(node)
            shared = (node.target, node.args[1:], value.dtype, value.device)
            found[node] = (*shared, stamp_of(node).phase, turn[node], marks)
    return found


def _is_ours(node: fx.Node) -> bool:
    stamp, waits = stamp_of(node), list(node.users)
    if stamp.user or stamp.phase == UPDATE or not is_collective(node):
        return False
    return len(waits) == 1 and is_wait(waits[0]) and stamp_of(waits[0]).phase == stamp.phase


def coalesce(edit: Editor, members: list[fx.Node], before: fx.Node, number: int) -> fx.Node:
    """Put one collective, and its items, before ``before`` in place of ``members``.

    Types are those of the members, so that what views their results keeps its storage.
    """
    first = members[0]
    with edit.before(before, phase=stamp_of(first).phase, bucket=number):
        start = edit.call(
            COALESCED[first.target],
            [member.args[0] for member in members],
            *first.args[1:],
            name=f"{first.name}_bucket",
        )
        items = [
            edit.call(getitem, start, place, name=f"{member.name}_item")
            for place, member in enumerate(members)
        ]
    start.meta["val"] = [value_of(member) for member in members]
    for item, member in zip(items, members, strict=True):
        (wait,) = member.users
        item.meta["val"] = value_of(member)
        for node in (item, wait):
            restamp(node, param=stamp_of(member).param, bucket=number)
        member.replace_all_uses_with(item)
        edit.graph.erase_node(member)
    return start
