"""One read and one gradient per parameter, however often the code reads it.

before:  %p = zc.param(%view(%w)); %q = zc.param(%w); ... %s = add(zc.grad(%a), zc.grad(%b))
after:   %p = zc.param(%w);        ...                    %s = zc.grad(add(%a, %b))
"""

from typing import Any

import torch
from torch import fx

from zc.errors import CaptureError
from zc.program.edit import Editor, erase_dead
from zc.program.nodes import input_of, value_of
from zc.program.program import Program
from zc.program.stamps import restamp
from zc.state.markers import GRAD, PARAM

aten: Any = torch.ops.aten
_ALIASES = (aten.view.default, aten.alias.default, aten.detach.default, aten._unsafe_view.default)
_LOCAL_OPS = (*_ALIASES, aten.copy.default, aten.add.Tensor, aten.add_.Tensor, aten.mul.Tensor,
              aten.clone.default, aten.copy_.default, aten.div.Tensor)  # fmt: skip


def canonicalize(program: Program) -> None:
    """Merge markers and make their operands the inputs themselves, in place.

    Raises:
        CaptureError: for a marker that reads something other than a parameter, or parameters
            sharded over different numbers of ranks along one axis.
    """
    _merge_reads(program)
    _merge_gradients(program)
    _check_mesh(program)


def local_gradients(program: Program) -> dict[fx.Node, str]:
    """The values of shard shape that are computed from a reduced gradient, with the parameter."""
    names = _names(program)
    found: dict[fx.Node, str] = {}
    for node in program.graph.nodes:
        if node.target is GRAD:
            found[node] = names[node.args[8]]
        elif node.target in _LOCAL_OPS:
            sources = [found[s] for s in node.all_input_nodes if s in found]
            if sources:
                found[node] = sources[0]
    return found


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
    while path[-1].op == "call_function" and path[-1].target in _ALIASES:
        path.append(path[-1].args[0])
    return path


def _merge_gradients(program: Program) -> None:
    names = _names(program)
    for node in program.graph.find_nodes(op="call_function", target=GRAD):
        name = names.get(node.args[8])
        if name is None:
            raise CaptureError(
                "a gradient leads to no parameter of this program; parameters inside "
                "torch.cond or other higher-order ops are not supported: move them outside"
            )
        storage = list(program.params[name].layout.storage_shape)
        local = node.args[1]
        node.args = (node.args[0], storage, *node.args[2:])
        restamp(node, param=name)
        for user in list(node.users):
            if user.target in _ALIASES and list(value_of(user).shape) == list(local):  # type: ignore
                user.replace_all_uses_with(node)
                program.graph.erase_node(user)
    for node in list(program.graph.find_nodes(op="call_function", target=aten.add.Tensor)):
        _merge_sum(program, node)


def _merge_sum(program: Program, total: fx.Node) -> None:
    """``zc.grad(a) + zc.grad(b)`` of one parameter becomes ``zc.grad(a + b)``."""
    left, right = total.args[:2]
    both = isinstance(left, fx.Node) and isinstance(right, fx.Node) and not total.kwargs
    if not both or left.target is not GRAD or right.target is not GRAD:  # type: ignore[union-attr]
        return
    if left.args[8] != right.args[8] or len(left.users) > 1 or len(right.users) > 1:  # type: ignore
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
