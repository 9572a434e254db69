"""What a kernel can take over of a program: which nodes it computes, and how it reads the others.

%t: f32[16] = aten.mul.Tensor(%w_grad, %clip)     computed: sources %w_grad and %clip
%old: f32[16] = aten.select.int(%history, 0, 0)   read, through a copy where %history is written
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from zc.codegen.spec import SCALARS
from zc.codegen.table import TABLE
from zc.program.edit import Editor
from zc.program.nodes import value_of
from zc.program.printer import print_target
from zc.program.program import Program
from zc.program.rounding import ROUND_STOCHASTIC
from zc.program.stamps import UPDATE, stamp_of
from zc.program.storages import storages_of, written_operands
from zc.program.updates import is_number

aten: Any = torch.ops.aten
FORMATS = {"memory_format", "pin_memory", "dtype"}  # of a result that is never stored
Changes = Mapping[int, Sequence[fx.Node]]  # what writes to each storage, up to the launch


def tensor_sources(node: fx.Node, like: torch.Tensor) -> list[fx.Node] | None:
    """The tensors that ``node`` computes with element by element; ``None`` if it is a leaf.

    So is what is computed in fp32 beside values in fp64: the kernel would not round it.
    """
    operation = TABLE.get(op_of(node)) if node.op == "call_function" else None
    shape = like.shape
    if operation is None or value_of(node).shape != shape:
        return None
    kind = value_of(node).dtype
    if like.dtype == torch.float64 and kind.is_floating_point and kind != like.dtype:
        return None
    if not kind.is_floating_point and op_of(node) in ("aten._to_copy", "aten.clone"):
        return None  # to whole numbers: a kernel computes with real ones
    if any(name not in (*operation.names, *FORMATS) for name in node.kwargs):
        return None
    found = []
    plain = node.args[:4] if node.target is ROUND_STOCHASTIC else node.args
    for argument in (*plain, *(node.kwargs[k] for k in node.kwargs if k not in FORMATS)):
        if isinstance(argument, fx.Node) and number_behind(argument, like) is None:
            if value_of(argument).shape != shape and not _is_scalar(argument, node):
                return None
            found.append(argument)
        elif not isinstance(argument, (fx.Node, int, float)):
            return None
    return found if stamp_of(node).phase == UPDATE or _conditions(node, found, shape) else None


def _conditions(node: fx.Node, sources: list[fx.Node], shape: Any) -> bool:
    """Whether a node before the update (clipping, a cast) has one tensor and serves the update.

    A cast counts where it loses nothing: the kernel computes in the wider type.
    """
    tensors = [source for source in sources if value_of(source).shape == shape]
    users = list(node.users)
    while len(users) == 1 and stamp_of(users[0]).phase != UPDATE:
        users = list(users[0].users)
    inside = bool(users) and all(stamp_of(user).phase == UPDATE for user in users)
    wider = all(value_of(node).dtype.itemsize >= value_of(t).dtype.itemsize for t in tensors)
    return len(tensors) == 1 and inside and wider


def _is_scalar(node: fx.Node, reader: fx.Node) -> bool:
    """A tensor of one element that a kernel can read: it lies where the others do."""
    value = value_of(node)
    wanted = value_of(reader).device
    return value.dim() == 0 and value.device == wanted and dtype_of(node) in SCALARS


def op_of(node: fx.Node) -> str:
    """The op as the table calls it; a clamp with one bound is that of the bound."""
    name = print_target(node.target)
    return "aten.clamp_min" if name == "aten.clamp" and len(node.args) == 2 else name


def number_behind(node: fx.Node, like: torch.Tensor) -> Any:
    """The number that a node is, or that it made a 0-d tensor of; ``None`` for other tensors.

    Such a tensor is its number only where a kernel on ``like`` computes in as wide a type: whole
    numbers are cut off, and fp32 beside fp64 is rounded.
    """
    value = value_of(node)
    if is_number(value):
        return node
    if node.target is not aten.scalar_tensor.default or not value.dtype.is_floating_point:
        return None
    return None if value.dtype != like.dtype == torch.float64 else node.args[0]


def read_as(program: Program, node: fx.Node, like: torch.Tensor, changing: Changes) -> fx.Node:
    """The node that the kernel reads in place of ``node``, so that it has the same value there.

    The launch stands behind other writes of the update. ``node`` is read as it is where none of
    them writes to its memory behind its first read, and through a copy made there otherwise. That
    serves all reads: no valid program has one behind such a write (``zc.verify.writes``).
    """
    first = min(_reads(node, like))
    if value_of(node).is_contiguous() and not changes_behind(first, [node], changing):
        return node
    return _copied(program, node, first)


def _reads(node: fx.Node, like: torch.Tensor) -> list[fx.Node]:
    """What reads ``node`` in the update, or in what a kernel takes over from before."""
    users = [u for u in node.users if u.op == "call_function" and node not in written_operands(u)]
    taken = [
        user
        for user in users
        if stamp_of(user).phase == UPDATE or tensor_sources(user, like) is not None
    ]
    return taken or users


def changes_behind(first: fx.Node, nodes: Sequence[fx.Node], changing: Changes) -> list[fx.Node]:
    """What writes to the memory of ``nodes`` behind ``first``."""
    storages = {key for node in nodes for key in storages_of(node)}
    return [w for key in storages for w in changing.get(key, ()) if w > first]


def _copied(program: Program, node: fx.Node, first: fx.Node) -> fx.Node:
    """A contiguous copy, made before ``first`` reads ``node``."""
    edit = Editor(program, program.graph, made_by="lower_update")
    with edit.before(first, phase=UPDATE, param=stamp_of(first).param):
        return edit.call(aten.clone.default, node, memory_format=torch.contiguous_format)


def dtype_of(node: fx.Node) -> str:
    """The dtype of ``node`` as kernels call it."""
    return str(value_of(node).dtype).removeprefix("torch.")
