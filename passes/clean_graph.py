"""Remove nodes that change nothing: identity views, double transposes, dead copies, repeated casts.

before:
  %detach: f32[8, 4] = aten.detach(%relu)
  %t_1: f32[4, 8] = aten.t(%t)
  %empty_like: f32[2, 4] = aten.empty_like(%w)
  %copy: f32[2, 4] = aten.copy(%empty_like, %w_grad)
after:
  (readers of %detach read %relu, those of %t_1 what %t transposed, those of %copy %w_grad)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from zc.program.edit import erase_dead
from zc.program.loops import loop_by_node
from zc.program.outside import Outside
from zc.program.pass_base import Kind, Pass
from zc.program.program import Program
from zc.program.stamps import stamp_of
from zc.program.types import retype

aten: Any = torch.ops.aten


@dataclass(frozen=True)
class CleanGraph(Pass):
    """Identity views, double transposes, dead copies and casts made twice are removed."""

    kind: ClassVar[Kind] = "optional"

    def run(self, program: Program) -> None:
        """Rewrite readers of what changes nothing, in place; one walk in program order."""
        outside = Outside.of(program)
        casts: dict[Any, fx.Node] = {}
        loops = loop_by_node(program.graph)
        for node in list(program.graph.nodes):
            if node.op != "call_function" or not node.users:
                continue
            key = _cast_key(node), loops.get(node)
            found = (_simpler(node), _same_cast(node, key, casts))
            equal = [s for s in found if s is not None and outside.may_replace(node, s)]
            if not equal:
                _remember_cast(node, key, casts)
                continue
            outside.replace(node, equal[0])
            node.replace_all_uses_with(equal[0])
            erase_dead(program.graph, [node])
        if outside.moved:  # views of a copy that is gone are views of its source now
            retype(program, program.graph)


def _simpler(node: fx.Node) -> fx.Node | None:
    """An earlier value that equals ``node``, if its op says so."""
    rule = _RULES.get(node.target)
    return rule(node) if rule is not None else None


def _operand(node: fx.Node) -> fx.Node | None:
    source = node.args[0]
    return source if isinstance(source, fx.Node) else None


def _undone(node: fx.Node) -> fx.Node | None:
    """``x`` of ``t(t(x))``, or of two transposes of the same dimensions."""
    inner = node.args[0]
    if not isinstance(inner, fx.Node) or inner.target is not node.target:
        return None
    return _operand(inner) if inner.args[1:] == node.args[1:] else None


def _permuted_back(node: fx.Node) -> fx.Node | None:
    inner: Any = node.args[0]
    if not isinstance(inner, fx.Node) or inner.target is not node.target:
        return None
    first, second = list(inner.args[1]), list(node.args[1])  # type: ignore[arg-type]
    back = [first[d] for d in second] == list(range(len(first)))
    return _operand(inner) if back else None


def _copied(node: fx.Node) -> fx.Node | None:
    """The source of ``copy(empty, source)``."""
    target, source = node.args[:2]
    fresh = isinstance(target, fx.Node) and target.target in _EMPTY
    return source if fresh and isinstance(source, fx.Node) else None


def _same_cast(node: fx.Node, key: Any, casts: dict[Any, fx.Node]) -> fx.Node | None:
    """An earlier cast of the same value to the same dtype in the same phase and loop."""
    return casts.get(key) if node.target is aten._to_copy.default else None


def _remember_cast(node: fx.Node, key: Any, casts: dict[Any, fx.Node]) -> None:
    if node.target is aten._to_copy.default:
        casts.setdefault(key, node)


def _cast_key(node: fx.Node) -> Any:
    return node.args, tuple(sorted(node.kwargs.items())), stamp_of(node).phase


_EMPTY = (aten.empty_like.default, aten.empty.memory_format, aten.empty_strided.default)
_RULES: dict[Any, Callable[[fx.Node], fx.Node | None]] = {
    aten.detach.default: _operand,
    aten.alias.default: _operand,
    aten.view.default: _operand,
    aten._unsafe_view.default: _operand,
    aten.expand.default: _operand,
    aten.slice.Tensor: _operand,
    aten.clone.default: _operand,
    aten._to_copy.default: _operand,
    aten.t.default: _undone,
    aten.transpose.int: _undone,
    aten.permute.default: _permuted_back,
    aten.copy.default: _copied,
}
