"""Remove nodes that change nothing: identity views, double transposes, dead copies, repeated casts.

before:
  %detach: f32[8, 4] = aten.detach(%relu)
  %t_1: f32[4, 8] = aten.t(%t)
  %empty_like: f32[2, 4] = aten.empty_like(%w)
  %copy: f32[2, 4] = aten.copy(%empty_like, %w_grad)
after:
  (readers of %detach read %relu, those of %t_1 what %t transposed, those of %copy %w_grad)
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import fx

from zc.program.edit import erase_dead
from zc.program.liveness import storages_of, written_operands
from zc.program.loops import loop_by_node
from zc.program.nodes import value_of
from zc.program.pass_base import Kind, Pass
from zc.program.program import Program
from zc.program.stamps import BACKWARD, FORWARD, stamp_of
from zc.program.types import retype, same_type

aten: Any = torch.ops.aten


@dataclass(frozen=True)
class CleanGraph(Pass):
    """Identity views, double transposes, dead copies and casts made twice are removed."""

    kind: ClassVar[Kind] = "optional"

    def run(self, program: Program) -> None:
        """Rewrite readers of what changes nothing, in place; one walk in program order."""
        outside = _Outside.of(program)
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


@dataclass
class _Outside:
    """What the caller sees: values returned, how often each storage is, and storages written to.

    ``saved`` are storages that backward reads after the caller got forward's outputs (level 1).
    ``moved`` says which storage took the place of one that is gone; types know only later.
    """

    returned: set[fx.Node]
    shared: Counter[int]
    inputs: frozenset[int]
    written: frozenset[int]
    saved: frozenset[int]
    moved: dict[int, int] = field(default_factory=dict)

    @staticmethod
    def of(program: Program) -> "_Outside":
        returned = [v for v in program.output_values() if isinstance(v, fx.Node)]
        written = [operand for n in program.graph.nodes for operand in written_operands(n)]
        return _Outside(
            set(returned),
            Counter(key for v in returned for key in storages_of(v)),
            frozenset(k for n in program.placeholders() for k in storages_of(n)),
            frozenset(k for n in written for k in storages_of(n)),
            frozenset(k for n in _saved(program) for k in storages_of(n)),
        )

    def may_replace(self, node: fx.Node, simpler: fx.Node) -> bool:
        """Whether the caller cannot tell ``simpler`` from ``node``.

        What is returned must keep a storage of its own, of its own size; and a copy stays a copy
        when it or its source is written to.
        """
        if not same_type(value_of(node), value_of(simpler)):
            return False
        (old, old_size), (new, new_size) = self._storage(node), self._storage(simpler)
        if old == new:
            return node not in self.returned or not (simpler in self.returned or new in self.inputs)
        if {old, new} & self.written:
            return False
        if not self.shared[old]:
            return True
        own = not self.shared[new] and new not in self.inputs and new not in self.saved
        return own and old_size == new_size

    def replace(self, node: fx.Node, simpler: fx.Node) -> None:
        """Note that ``simpler`` takes the place of ``node``."""
        if node in self.returned:
            self.returned.add(simpler)
        old, new = self._storage(node)[0], self._storage(simpler)[0]
        if old != new:
            self.moved[old] = new
            self.shared[new] += self.shared.pop(old, 0)

    def _storage(self, node: fx.Node) -> tuple[int, int]:
        """The storage that ``node``, a tensor, lies in by now, and its bytes."""
        ((key, size),) = storages_of(node).items()
        while key in self.moved:
            key = self.moved[key]
        return key, size


def _saved(program: Program) -> list[fx.Node]:
    if program.level != 1:
        return []
    forward = [n for n in program.graph.nodes if stamp_of(n).phase == FORWARD]
    return [n for n in forward if any(stamp_of(user).phase == BACKWARD for user in n.users)]


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
