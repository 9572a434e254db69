"""Records the arithmetic of an optimizer's step as one graph in which nothing is written twice.

Equal calls become one node (hash consing), so several paths through the same code share what they
have in common; the type of a call, unless a view, is computed on the first of them. Runs below
``torch.func.functionalize``: what arrives here has no mutation left.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode

from zc import torch_private
from zc.errors import CaptureError
from zc.program.nodes import returns_view
from zc.program.types import same_type
from zc.program.updates import NUMBER
from zc.update.number import Condition, Number

aten: Any = torch.ops.aten
_CASTS = (aten.lift_fresh.default, aten.lift_fresh_copy.default)
_SAME = (aten.detach.default, aten.alias.default)


@dataclass(frozen=True)
class Branch:
    """One decision on the way through the step: ``node`` was ``taken`` at ``where``."""

    node: fx.Node
    taken: Any
    where: str


@dataclass
class Path:
    """One way through the step: decisions asked for, and those made, host and data apart."""

    wanted: Sequence[bool] = ()
    made: list[Branch] = field(default_factory=list)
    conditions: list[Branch] = field(default_factory=list)


class Recorder(TorchDispatchMode):
    """Collects nodes; ``known`` has the present values of those that the host can compute."""

    def __init__(self, fake_mode: Any) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.known: dict[fx.Node, Any] = {}
        self.path = Path()
        self.fake_mode = fake_mode
        self._made: dict[Any, fx.Node] = {}
        self._values: dict[Any, Any] = {}  # what calls returned
        self._nodes: dict[int, tuple[torch.Tensor, fx.Node]] = {}

    def input(self, name: str, fake: Any, known: Any = None) -> fx.Node:
        """A placeholder for ``fake``; ``known`` is its present value where the host knows it."""
        node = self.graph.placeholder(name)
        node.meta["val"] = fake
        if known is not None:
            self.known[node] = known
        if isinstance(fake, torch.Tensor):
            self._nodes[id(fake)] = (fake, node)
        return node

    def node_of(self, value: Any) -> fx.Node:
        """The node that computes ``value``, a tensor or a number.

        Raises:
            CaptureError: for a tensor that did not come out of the trace.
        """
        if isinstance(value, torch.SymFloat):
            return value.node.number.origin
        found = self._nodes.get(id(value))
        if found is None:
            raise CaptureError(
                f"the optimizer reads a tensor of shape {list(value.shape)} that is neither a "
                f"parameter, a gradient nor in optimizer.state; keep it in optimizer.state"
            )
        return found[1]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _CASTS and not torch_private.is_fake(args[0]):
            return self._constant(args[0])
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise CaptureError(f"the optimizer draws random numbers ({func}), which zc cannot yet")
        if func is aten.copy_.default:  # functionalize writes inputs back; outputs say the same
            return args[0]
        nodes = _mapped((tuple(args), kwargs), self._as_node)
        if func is aten._local_scalar_dense.default:
            return Number(self, self._node(func, nodes[0], {}, NUMBER))
        if returns_view(func):  # torch wants a new tensor each time
            return self._call(func, args, kwargs, nodes)
        key = _key(func, *nodes)
        if key not in self._values:
            self._values[key] = self._call(func, args, kwargs, nodes)
        return self._values[key]

    def _call(self, func: Any, args: Any, kwargs: dict[str, Any], nodes: tuple[Any, Any]) -> Any:
        """The type of what ``func`` returns; ``nodes`` are its operands as nodes."""
        plain_args, plain_kwargs = _mapped((tuple(args), kwargs), _as_plain)
        with self.fake_mode:
            value = func(*plain_args, **plain_kwargs)
        if func in _SAME:  # nothing is written here, so an alias is the value itself
            self._remember(nodes[0][0], value)
        elif func is aten.copy.default and same_type(*plain_args[:2]):
            self._remember(nodes[0][1], value)
        elif not isinstance(value, torch.device):
            self._remember(self._node(func, *nodes, value), value)
        return value

    def number(self, target: Callable[..., Any], *operands: Any) -> Any:
        """Record arithmetic or a comparison of numbers."""
        args = tuple(map(self._as_node, operands))
        compares = target in _COMPARISONS
        node = self._node(target, args, {}, NUMBER)
        return Condition(self, node) if compares else Number(self, node)

    def constant(self, value: float) -> fx.Node:
        """A node for a plain number."""
        node = self._node(float if isinstance(value, float) else int, (value,), {}, NUMBER)
        self.known[node] = value
        return node

    def decide(self, node: fx.Node, where: str) -> bool:
        """The outcome of a branch: what holds now, or, depending on data, one of both."""
        if node in self.known:
            taken = bool(self.known[node])
            self.path.conditions.append(Branch(node, taken, where))
            return taken
        for branch in self.path.made:
            if branch.node is node:
                return branch.taken
        index = len(self.path.made)
        taken = self.path.wanted[index] if index < len(self.path.wanted) else True
        self.path.made.append(Branch(node, taken, where))
        return taken

    def pin(self, node: fx.Node, where: str) -> Any:
        """The present value of ``node``: the trace holds while it stays.

        Raises:
            CaptureError: for a number that depends on data.
        """
        if node not in self.known:
            raise CaptureError(
                f"{where}: a number computed from tensors is needed as a Python float; keep it a "
                f"tensor, or use it in arithmetic only"
            )
        value = self.known[node]
        same = self._node(operator.eq, (node, value), {}, False)
        self.path.conditions.append(Branch(same, True, where))
        return value

    def call(self, target: Any, *args: Any, value: Any, **kwargs: Any) -> fx.Node:
        """A node for ``target(*args)`` of type ``value``, the one there is if there is one."""
        return self._node(target, args, kwargs, value)

    def _node(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> Any:
        key = _key(target, args, kwargs)
        if key in self._made:
            return self._made[key]
        node = self.graph.call_function(target, args, kwargs)
        node.meta["val"] = value
        self._made[key] = node
        sources = node.all_input_nodes
        if all(source in self.known for source in sources) and (sources or _is_host(value)):
            given = fx.node.map_arg((args, kwargs), self.known.__getitem__)
            self.known[node] = target(*given[0], **given[1])  # type: ignore[index]
        return node

    def _remember(self, node: fx.Node, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            self._nodes[id(value)] = (value, node)
        elif isinstance(value, (tuple, list)):
            for i, item in enumerate(value):
                self._remember(self._node(operator.getitem, (node, i), {}, item), item)

    def _constant(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim():
            raise CaptureError("the optimizer makes a tensor of constants; keep it in its state")
        kind = {"dtype": tensor.dtype, "device": tensor.device}
        number = tensor.item()
        with self.fake_mode:
            fake = aten.full.default([], number, **kind)
        node = self._node(aten.full.default, ([], number), kind, fake)
        self.known[node] = tensor.clone()
        self._remember(node, fake)
        return fake

    def _as_node(self, value: Any) -> Any:
        tracked = isinstance(value, (torch.Tensor, torch.SymFloat))
        return self.node_of(value) if tracked else value


_COMPARISONS = (operator.lt, operator.gt, operator.le, operator.ge, operator.eq, operator.ne)


def _is_host(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 0 and value.device.type == "cpu"


def _as_plain(value: Any) -> Any:
    return NUMBER if isinstance(value, torch.SymFloat) else value


def _mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {k: _mapped(v, function) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(v, function) for v in value)
    return function(value)


def _key(target: Any, args: Any, kwargs: Any) -> Any:
    return (target, _frozen(args), _frozen(kwargs))


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple((k, _frozen(v)) for k, v in sorted(value.items()))
    if isinstance(value, (list, tuple)):
        return (type(value), *map(_frozen, value))
    if isinstance(value, fx.Node):
        return value
    return (type(value), repr(value))
