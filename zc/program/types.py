"""Types are real: the type of a node is what its op returns for its operands, aliasing included."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from zc import torch_private
from zc.program.collectives import WAIT
from zc.program.nodes import value_of
from zc.program.program import Program
from zc.program.updates import NUMBER, is_number


def derive(node: fx.Node, fake_mode: Any) -> Any:
    """Run the op of ``node`` on the types of its operands and return the type of the result.

    A wait returns its operand: at run time it is the same storage.

    Raises:
        whatever the op raises for such operands.
    """
    if _gives_number(node):
        return NUMBER
    args, kwargs = map_arg((node.args, node.kwargs), value_of)
    with fake_mode, torch.no_grad():
        if node.target is WAIT:
            return torch.ops.aten.alias.default(args[0])
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _gives_number(node: fx.Node) -> bool:
    """Whether ``node`` computes a Python number from others, or from a 0-d tensor."""
    if node.target is torch.ops.aten._local_scalar_dense.default:
        return not isinstance(value_of(node), torch.SymFloat | torch.SymInt | torch.SymBool)
    if isinstance(node.target, torch._ops.OpOverload | torch._ops.HigherOrderOperator):
        return False
    sources = [value_of(source) for source in node.all_input_nodes]
    return bool(sources) and all(map(is_number, sources))


def retype_views(program: Program, graph: fx.Graph, readers: set[fx.Node]) -> None:
    """Derive anew the types of those of ``readers``, and of their views, that are views.

    For nodes that read another value than before, of the same type in a storage of its own: what
    they compute in new storages has the type that it had.
    """
    stale = set(readers)
    for node in graph.nodes:
        if node.op != "call_function" or node not in stale or has_unbacked(value_of(node)):
            continue
        value = derive(node, program.fake_mode)
        if _storages(value) & {k for s in node.all_input_nodes for k in _storages(value_of(s))}:
            node.meta["val"] = value
            stale.update(node.users)


def _storages(value: Any) -> set[int]:
    items = value if isinstance(value, (tuple, list)) else [value]
    return {i.untyped_storage()._cdata for i in items if isinstance(i, torch.Tensor)}


def has_unbacked(value: Any) -> bool:
    """True when a size in ``value`` depends on data, so that running the op again renames it."""
    if isinstance(value, torch.Tensor):
        return torch_private.has_symbols(value) and _is_unbacked(value)
    items = value if isinstance(value, (tuple, list)) else [value]
    return any(_is_symbolic(item) and _is_unbacked(item) for item in items)


def _is_symbolic(item: Any) -> bool:
    """Whether there is any symbol in ``item``; most tensors have none, and this is quick to say."""
    if isinstance(item, torch.Tensor):
        return not is_static(item)
    return isinstance(item, (torch.SymInt, torch.SymFloat, torch.SymBool))


def is_static(tensor: torch.Tensor) -> bool:
    """Whether all sizes, strides and the offset of ``tensor`` are numbers."""
    return not torch_private.has_symbols(tensor)


def _is_unbacked(item: Any) -> bool:
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    return bool(free_unbacked_symbols(item))


def _plain(sizes: Sequence[Any]) -> bool:
    return all(type(size) is int for size in sizes)


def same_type(left: Any, right: Any) -> bool:
    """Whether two types agree: shape, stride, dtype and device of every tensor, every number."""
    if isinstance(left, (tuple, list)):
        return (
            isinstance(right, (tuple, list))
            and len(left) == len(right)
            and all(map(same_type, left, right))
        )
    if isinstance(left, torch.Tensor):
        return left is right or (isinstance(right, torch.Tensor) and _same_tensor(left, right))
    return type(left) is type(right) and str(left) == str(right)


def _same_tensor(left: torch.Tensor, right: torch.Tensor) -> bool:
    if (left.dtype, left.device, left.dim()) != (right.dtype, right.device, right.dim()):
        return False
    pairs = (left.shape, right.shape), (left.stride(), right.stride())
    return all(_same_sizes(*pair) for pair in pairs)


def _same_sizes(left: Sequence[Any], right: Sequence[Any]) -> bool:
    """Whether two rows of sizes are equal; symbols are compared as text, which guards nothing."""
    if _plain(left) and _plain(right):
        return tuple(left) == tuple(right)
    return list(map(str, left)) == list(map(str, right))
