"""One read and one gradient per parameter, however often the code reads it.

before:  %p = zc.param(%view(%w)); %q = zc.param(%w); ... %s = add(zc.grad(%a), zc.grad(%b))
after:   %p = zc.param(%w);        ...                    %s = zc.grad(add(%a, %b))
"""

from typing import Any

import torch
from torch import fx

from zc.capture.microbatch_calls import micro_batch_of
from zc.errors import CaptureError
from zc.program.edit import Editor, erase_dead
from zc.program.nodes import input_of, value_of
from zc.program.program import Program
from zc.program.stamps import restamp, stamp_of
from zc.state.markers import GRAD, PARAM
from zc.state.step import UPDATE

aten: Any = torch.ops.aten
ALIASES = (aten.view.default, aten.alias.default, aten.detach.default, aten._unsafe_view.default)
EMPTY = (aten.empty_like.default, aten.empty.memory_format, aten.empty_strided.default)
_UNKNOWN = (
    "a parameter is read, or its gradient comes out, where capture cannot tell which one it is; "
    "parameters inside torch.cond or other higher-order ops are not supported: move them outside"
)


def canonicalize(program: Program) -> None:
    """Merge markers and make their operands the inputs themselves, in place.

    Raises:
        CaptureError: for a marker that reads something other than a parameter, or parameters
            sharded over different numbers of ranks along one axis.
    """
    _merge_reads(program)
    _merge_gradients(program)
    _check_mesh(program)


def _names(program: Program) -> dict[int, str]:
    """Parameter names by marker tag (the index of the Dynamo argument)."""
    return {
        n.args[7]: input_of(n.args[0]).subject  # type: ignore[misc]
        for n in program.graph.find_nodes(op="call_function", target=PARAM)
    }


def _merge_reads(program: Program) -> None:
    first: dict[fx.Node, fx.Node] = {}
    for node in program.graph.find_nodes(op="call_function", target=PARAM):
        path = _to_input(node.args[0])
        source = path[-1]
        if source.op != "placeholder" or input_of(source).kind != "param":
            raise CaptureError(
                f"marker {node.format_node()} reads something other than a parameter; parameters "
                f"must be attributes of modules that zc.shard converted"
            )
        if node.args[7] == -1:
            raise CaptureError(_UNKNOWN)
        if source in first:
            node.replace_all_uses_with(first[source])
            program.graph.erase_node(node)
        else:
            first[source] = node
            node.replace_input_with(node.args[0], source)  # type: ignore[arg-type]
            restamp(node, param=input_of(source).subject)
            node.meta.pop("recompute", None)
        erase_dead(program.graph, path[:-1])


def _to_input(value: Any) -> list[fx.Node]:
    """``value`` and what it is an alias of, down to the input."""
    path = [value]
    while path[-1].op == "call_function" and path[-1].target in ALIASES:
        path.append(path[-1].args[0])
    return path


def _merge_gradients(program: Program) -> None:
    names = _names(program)
    for node in program.graph.find_nodes(op="call_function", target=GRAD):
        name = names.get(node.args[8])
        if name is None:
            raise CaptureError(_UNKNOWN)
        restamp(node, param=name)
        for user in list(node.users):
            local: Any = node.args[1]
            if user.target in ALIASES and list(value_of(user).shape) == list(local):
                user.replace_all_uses_with(node)
                program.graph.erase_node(user)
    calls = micro_batch_of(program.graph)
    for node in list(program.graph.find_nodes(op="call_function", target=aten.add.Tensor)):
        _merge_sum(program, node, calls)
    for node in program.graph.find_nodes(op="call_function", target=GRAD):
        _localize(program, node)


def _localize(program: Program, grad: fx.Node) -> None:
    """Make ``grad`` return padded storage; the user's own nodes read this rank's part of it.

    Autograd's copy into a fresh ``.grad`` is dropped: what a reduction returns is fresh already.
    """
    layout = program.params[stamp_of(grad).param].layout
    local: Any = grad.args[1]
    grad.args = (grad.args[0], list(layout.storage_shape), *grad.args[2:])
    for user in list(grad.users):
        if layout.world > 1 and fills_fresh(user, grad):
            user.replace_all_uses_with(grad)
            erase_dead(program.graph, [user])
    readers = [u for u in grad.users if u.op == "call_function" and u.target is not UPDATE]
    if not layout.padded or not readers:
        return
    edit = Editor(program, program.graph, made_by="capture")
    strides = torch.empty(list(local), device="meta").stride()
    with edit.after(grad, param=stamp_of(grad).param):
        part = edit.call(aten.as_strided.default, grad, list(local), list(strides), 0)
    for reader in readers:
        reader.replace_input_with(grad, part)


def fills_fresh(user: fx.Node, grad: fx.Node) -> bool:
    """Whether ``user`` copies ``grad`` into a new tensor, as autograd does for ``.grad``."""
    if user.target is not aten.copy.default or user.args[1] is not grad:
        return False
    target = user.args[0]
    return isinstance(target, fx.Node) and target.target in EMPTY


def _merge_sum(program: Program, total: fx.Node, calls: dict[fx.Node, fx.Node]) -> None:
    """``zc.grad(a) + zc.grad(b)`` of one parameter becomes ``zc.grad(a + b)``.

    Not where ``a`` and ``b`` belong to different ``calls`` of ``zc.microbatches``, or one to none.
    """
    left, right = total.args[:2]
    both = isinstance(left, fx.Node) and isinstance(right, fx.Node) and not total.kwargs
    if not both or left.target is not GRAD or right.target is not GRAD:  # type: ignore[union-attr]
        return
    if left.args[8] != right.args[8] or len(left.users) > 1 or len(right.users) > 1:  # type: ignore
        return
    if calls.get(left) is not calls.get(right):  # type: ignore[arg-type]
        return
    edit = Editor(program, program.graph, made_by="capture")
    with edit.before(total, param=input_name(left)):  # type: ignore[arg-type]
        whole = edit.call(aten.add.Tensor, left.args[0], right.args[0])  # type: ignore[union-attr]
        merged = edit.call(GRAD, whole, *left.args[1:])  # type: ignore[union-attr]
    total.replace_all_uses_with(merged)
    erase_dead(program.graph, [total])


def input_name(node: fx.Node) -> str:
    """The parameter a marker is stamped with."""
    return node.meta["zc"].param


def _check_mesh(program: Program) -> None:
    for param in program.params.values():
        layout = param.layout
        if not layout.replicated and program.mesh.size(layout.axis) != layout.world:
            raise CaptureError(
                f"parameter '{param.name}' is sharded over {layout.world} ranks of axis "
                f"'{layout.axis}', the program's mesh has {program.mesh}; shard the whole model "
                f"over one mesh"
            )
