"""What the arguments of a captured function are: parameters, buffers, gradients, the user's.

Dynamo hands a backend a graph and example inputs. This module reads names from the expressions
that the inputs come from, tags every read of a sharded parameter with the argument it reads, and
puts the marker behind parameters that were never sharded, so that all programs look alike.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.distributed.tensor import DTensor

from zc import torch_private
from zc.comm.groups import DEFAULT_AXIS
from zc.program.mesh import Mesh
from zc.state.markers import PARAM
from zc.state.spec import spec_of

_STEP = re.compile(r"_(?:modules|parameters|buffers)\['([^']+)'\]|\.(\w+)|\['(\w+)'\]")
_HELD = re.compile(r"_held(?:\.|'?\]\.)?of_(\d+)\[(\d+)\]")
_PARAM_OPS = (PARAM, torch.ops.zc.param)


@dataclass(frozen=True)
class Argument:
    """One argument of a captured function.

    ``kind`` is ``param`` (sharded or not), ``grad``, ``buffer``, ``user`` or ``symbol``; ``name``
    the qualified name of a parameter (also of its gradient) or buffer, the source expression of
    anything else.
    """

    index: int
    kind: str
    name: str
    sharded: bool = False
    trainable: bool = False
    ties: tuple[str, ...] = ()


def describe_arguments(graph: fx.Graph, examples: Sequence[Any]) -> list[Argument]:
    """Say what each placeholder of a Dynamo graph is; names are unique."""
    placeholders = graph.find_nodes(op="placeholder")
    found: list[Argument] = []
    taken: set[str] = set()
    names: dict[str, str] = {}
    for index, (node, example) in enumerate(zip(placeholders, examples, strict=True)):
        expression = torch_private.source_expression(node)
        kind = _kind(expression, example)
        name = qualified_name(expression) if kind in ("param", "buffer", "grad") else expression
        name = _name_at_rest(example, expression) or name or node.name
        if kind != "grad":  # a gradient bears the name of its parameter
            while name in taken:
                name += "'"
            taken.add(name)
        sharded = isinstance(example, DTensor)
        trainable = isinstance(example, torch.Tensor) and example.requires_grad
        ties = _further_names(example, name) if kind == "param" else ()
        found.append(Argument(index, kind, name, sharded, trainable, ties))
        names[expression] = name
    pairs = zip(found, map(torch_private.source_expression, placeholders), strict=True)
    return [_after_its_parameter(argument, expression, names) for argument, expression in pairs]


def _after_its_parameter(argument: Argument, expression: str, names: dict[str, str]) -> Argument:
    """A gradient bears the name of its parameter, however the function reaches that."""
    owner = names.get(expression.removesuffix(".grad")) if argument.kind == "grad" else None
    return argument if owner is None else replace(argument, name=owner)


def _name_at_rest(example: Any, expression: str) -> str:
    """The name of a parameter that the function reaches through its optimizer, not its module."""
    place = _HELD.search(expression)
    if place is None:
        return ""
    param = example if not expression.endswith(".grad") else None
    spec = spec_of(param) if isinstance(param, torch.Tensor) else None
    return spec.name if spec is not None else f"param{place.group(2)}"


def _further_names(param: torch.Tensor, name: str) -> tuple[str, ...]:
    spec = spec_of(param)
    return () if spec is None else tuple(other for other in spec.names if other != name)


def qualified_name(expression: str) -> str:
    """``h.0.weight`` from ``L['self']._modules['h']._modules['0']._parameters['weight']``."""
    expression = expression.removesuffix(".grad")
    steps = [next(filter(None, match)) for match in _STEP.findall(expression)]
    inner = [m for m in re.findall(r"_(?:modules|parameters|buffers)\['([^']+)'\]", expression)]
    name = ".".join(inner) if inner else ".".join(steps)
    return name


def tag_reads(module: fx.GraphModule, outer: Sequence[int | None] | None = None) -> None:
    """Give each marker call the index of the argument it reads, also inside checkpointed bodies.

    ``outer`` maps the placeholders of a nested body to arguments of the outermost graph.
    """
    placeholders = module.graph.find_nodes(op="placeholder")
    index = {n: i if outer is None else outer[i] for i, n in enumerate(placeholders)}
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in _PARAM_OPS:
            origin = index.get(_origin(node))
            if origin is not None:
                node.args = (*node.args[:7], origin)
        for body in _bodies(module, node):
            operands = [n for n in node.args if n is not body]
            inner = [index.get(_origin_of(n)) for n in operands]
            count = len(getattr(module, str(body.target)).graph.find_nodes(op="placeholder"))
            tag_reads(getattr(module, str(body.target)), inner[-count:] if count else [])


def mark_plain_parameters(
    module: fx.GraphModule, arguments: Sequence[Argument], examples: Sequence[Any], mesh: Mesh
) -> None:
    """Put the marker behind every trainable parameter that was not sharded: replicated on ``dp``.

    Reads under ``no_grad`` and writes keep the parameter itself.
    """
    placeholders = module.graph.find_nodes(op="placeholder")
    reads = _differentiable_reads(module.graph)
    world = mesh.size(DEFAULT_AXIS)
    for argument, node, example in zip(arguments, placeholders, examples, strict=True):
        if argument.kind != "param" or argument.sharded or not argument.trainable:
            continue
        users = [u for u in node.users if u in reads and not _keeps_parameter(u, node)]
        if not users:
            continue
        with module.graph.inserting_before(placeholders[-1].next):
            dtype = example.dtype
            args = (node, tuple(example.shape), -1, DEFAULT_AXIS, world, dtype, dtype)
            marker = module.graph.call_function(torch.ops.zc.param, (*args, argument.index))
            marker.meta["example_value"] = node.meta.get("example_value")
        for user in users:
            user.replace_input_with(node, marker)
    module.recompile()


def _kind(expression: str, example: Any) -> str:
    if not isinstance(example, torch.Tensor):
        return "symbol"
    if expression.endswith(".grad"):
        return "grad"
    if isinstance(example, nn.Parameter) or "_parameters[" in expression:
        return "param"
    return "buffer" if "_buffers[" in expression else "user"


def _differentiable_reads(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that read values with gradients recorded, other than ``torch.autograd.grad`` itself."""
    recording = torch.is_grad_enabled()
    reads = set()
    for node in graph.nodes:
        if node.target is torch._C._set_grad_enabled:
            recording = bool(node.args[0])
        if recording and node.target is not torch.autograd.grad:
            reads.add(node)
    return reads


def _keeps_parameter(user: fx.Node, param: fx.Node) -> bool:
    """Whether ``user`` is a marker already, or writes to ``param`` itself, not only reads it."""
    if user.target in _PARAM_OPS:
        return True
    in_place = user.op == "call_method" and str(user.target).endswith("_")
    return in_place and user.args[0] is param


def _origin(marker: fx.Node) -> fx.Node | None:
    return _origin_of(marker.args[0])


def _origin_of(value: Any) -> Any:
    while isinstance(value, fx.Node) and value.op == "call_method" and value.target == "to_local":
        value = value.args[0]
    return value


def _bodies(module: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    if node.op != "call_function":
        return []
    nested = [a for a in node.args if isinstance(a, fx.Node) and a.op == "get_attr"]
    return [a for a in nested if isinstance(getattr(module, str(a.target), None), fx.GraphModule)]
