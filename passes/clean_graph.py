"""Remove nodes that change nothing: identity views, double transposes, dead copies, repeated casts.

before:
  %detach: f32[8, 4] = aten.detach(%relu)
  %t_1: f32[4, 8] = aten.t(%t)
  %view_1: f32[32] = aten.view(%view, [32])
  %empty_like: f32[2, 4] = aten.empty_like(%w)
  %copy: f32[2, 4] = aten.copy(%empty_like, %w_grad)
after:
  %view_1: f32[32] = aten.view(%x, [32])
  (readers of %detach read %relu, those of %t_1 what %t transposed, those of %copy %w_grad)

A view that is the tensor which it, or a view before it, was made from is that tensor, whatever the
ops in between were called. A view of a view is taken of the first tensor directly. What nothing
reads goes. What is read in the place of a copy, or of a cast made again, must fit under the peak of
the phase for as long as that takes (zc.program.headroom); otherwise the copy stays.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from zc.program.analysis import is_pure, turns
from zc.program.edit import Editor, erase_dead
from zc.program.headroom import Headroom, live_on
from zc.program.loops import loop_by_node
from zc.program.nodes import value_of
from zc.program.outside import Outside
from zc.program.pass_base import Kind, Pass
from zc.program.program import Program
from zc.program.stamps import stamp_of
from zc.program.types import retype_views, same_type
from zc.program.views import same_view, viewed_by

aten: Any = torch.ops.aten


@dataclass(frozen=True)
class CleanGraph(Pass):
    """Identity views, double transposes, dead copies, repeated casts and dead code are removed."""

    kind: ClassVar[Kind] = "optional"

    def run(self, program: Program) -> None:
        """Rewrite readers of what changes nothing, in place."""
        while readers := clean(program):  # views of a copy that is gone are views of its source now
            retype_views(program, program.graph, readers)


def clean(program: Program) -> set[fx.Node]:
    """One walk in program order; the readers of copies that were removed."""
    outside, room = Outside.of(program), Headroom(program.graph)
    edit = Editor(program, program.graph, "clean_graph")
    casts: dict[Any, fx.Node] = {}
    loops, turn = loop_by_node(program.graph), turns(program.graph)
    for node in list(program.graph.nodes):
        if node.op != "call_function" or not node.users:
            continue
        key = _cast_key(node), stamp_of(node).phase, turn[node], loops.get(node)
        found = (_same_tensor(node), _copied(node), _same_cast(node, key, casts))
        equal = (s for s in found if s is not None and outside.may_replace(node, s))
        kept = next((s for s in equal if live_on(outside, room, s, node)), None)
        if kept is not None:
            outside.replace(node, kept)
            node.replace_all_uses_with(kept)
            erase_dead(program.graph, [node])
            continue
        _remember_cast(node, key, casts)
        _read_past_views(edit, node)
    erase_unread(program.graph)
    return outside.readers


def _same_tensor(node: fx.Node) -> fx.Node | None:
    """The first of the tensors which ``node`` is a view of that is the very same."""
    found, source = None, viewed_by(node)
    while source is not None:
        if same_view(node, source):
            found = source
        source = viewed_by(source)
    return found


def _copied(node: fx.Node) -> fx.Node | None:
    """What ``node`` is a copy of, if its op says so."""
    rule = _COPIES.get(node.target)
    return rule(node) if rule is not None else None


def _operand(node: fx.Node) -> fx.Node | None:
    source = node.args[0]
    return source if isinstance(source, fx.Node) else None


def _stored(node: fx.Node) -> fx.Node | None:
    """The source of ``copy(empty, source)``."""
    target, source = node.args[:2]
    fresh = isinstance(target, fx.Node) and target.target in _EMPTY
    return source if fresh and isinstance(source, fx.Node) else None


def _unpadded(node: fx.Node) -> fx.Node | None:
    """The operand of a padding by nothing."""
    padding: Any = node.args[1]
    return _operand(node) if all(isinstance(p, int) and p == 0 for p in padding) else None


def _alone(node: fx.Node) -> fx.Node | None:
    """The one tensor that is concatenated with no other."""
    parts: Any = node.args[0]
    return parts[0] if len(parts) == 1 else None


def _same_cast(node: fx.Node, key: Any, casts: dict[Any, fx.Node]) -> fx.Node | None:
    """An earlier cast of the same value to the same dtype in the same phase, turn and loop."""
    return casts.get(key) if node.target is aten._to_copy.default else None


def _remember_cast(node: fx.Node, key: Any, casts: dict[Any, fx.Node]) -> None:
    if node.target is aten._to_copy.default:
        casts[key] = node


def _cast_key(node: fx.Node) -> Any:
    return node.args, tuple(sorted(node.kwargs.items()))


def _read_past_views(edit: Editor, node: fx.Node) -> None:
    """Let ``view(view(x))`` view ``x``, where that gives a tensor of the same type."""
    nearest: Any = node.args[0] if node.target in _VIEWS else None
    source = nearest
    while source is not None and source.target in _VIEWS:
        source = source.args[0]
    if source is nearest or not value_of(source).is_contiguous():
        return
    kept, old = node.args, value_of(node)
    node.args = (source, *kept[1:])
    new = edit.derive(node)
    if same_type(old, new):
        node.meta["val"] = new
        erase_dead(edit.graph, [nearest])
    else:
        node.args = kept


def erase_unread(graph: fx.Graph) -> None:
    """Erase pure nodes that nothing reads, and what only they read."""
    for node in reversed(graph.nodes):
        if not node.users and is_pure(node):
            graph.erase_node(node)


_EMPTY = (aten.empty_like.default, aten.empty.memory_format, aten.empty_strided.default)
_VIEWS = (aten.view.default, aten._unsafe_view.default)
_COPIES: dict[Any, Callable[[fx.Node], fx.Node | None]] = {
    aten.clone.default: _operand,
    aten._to_copy.default: _operand,
    aten.repeat.default: _operand,
    aten.copy.default: _stored,
    aten.constant_pad_nd.default: _unpadded,
    aten.cat.default: _alone,
}
