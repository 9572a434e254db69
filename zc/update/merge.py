"""Joining the ways through a step that depend on data: values are chosen where they differ.

Paths share a hash-consed graph, so two results are equal where they are one node. Where they
differ, the choice is pushed as far back as operations agree: ``p + a*u`` and ``p + b*u`` become
``p + choose(c, a, b)*u``, as the phi functions of SSA form would have it (Cytron et al., 1991).
"""

from collections.abc import Sequence
from typing import Any

from torch import fx

from zc.program.updates import Slot, choose
from zc.update.recorder import Path, Recorder

Results = dict[Slot, fx.Node]


def merge_paths(recorder: Recorder, paths: Sequence[tuple[Path, Results]]) -> Results:
    """The results of all ``paths`` as one, choosing by the conditions on which they part.

    Raises:
        CaptureError: for paths that leave different entries of state.
    """
    return _merge(recorder, list(paths), 0)


def _merge(recorder: Recorder, paths: list[tuple[Path, Results]], depth: int) -> Results:
    if len(paths) == 1:
        return paths[0][1]
    condition = paths[0][0].made[depth].node
    sides = [[p for p in paths if p[0].made[depth].taken is side] for side in (True, False)]
    left, right = (_merge(recorder, side, depth + 1) for side in sides)
    known: dict[tuple[fx.Node, fx.Node], fx.Node] = {}
    slots = dict.fromkeys([*left, *right])
    return {
        slot: _select(recorder, condition, left[slot], right[slot], known)
        for slot in slots
        if slot in left and slot in right
    }


def _select(
    recorder: Recorder,
    condition: fx.Node,
    left: fx.Node,
    right: fx.Node,
    known: dict[tuple[fx.Node, fx.Node], fx.Node],
) -> fx.Node:
    """A node that is ``left`` where ``condition`` holds and ``right`` elsewhere."""
    if left is right:
        return left
    if (left, right) not in known:
        value = left.meta["val"]
        pairs = _operand_pairs(left, right)
        if pairs is None:
            node = recorder.call(choose, condition, left, right, value=value)
        else:
            chosen = {a: _select(recorder, condition, a, b, known) for a, b in pairs}
            args, kwargs = fx.node.map_arg((left.args, left.kwargs), lambda n: chosen.get(n, n))
            node = recorder.call(left.target, *args, value=value, **kwargs)
        known[left, right] = node
    return known[left, right]


def _operand_pairs(left: fx.Node, right: fx.Node) -> list[tuple[fx.Node, fx.Node]] | None:
    """The operands in which two calls of one op differ; ``None`` where more than those differ."""
    if left.op != "call_function" or left.target is not right.target:
        return None
    pairs: dict[fx.Node, fx.Node] = {}
    if not _match((left.args, left.kwargs), (right.args, right.kwargs), pairs):
        return None
    return list(pairs.items())


def _match(left: Any, right: Any, pairs: dict[fx.Node, fx.Node]) -> bool:
    if isinstance(left, fx.Node) and isinstance(right, fx.Node):
        return pairs.setdefault(left, right) is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_match(left[k], right[k], pairs) for k in left)
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        same = len(left) == len(right)
        return same and all(_match(a, b, pairs) for a, b in zip(left, right, strict=True))
    return type(left) is type(right) and repr(left) == repr(right)
