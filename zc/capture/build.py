"""From a traced aten graph to a logical ``Program``.

    AOTAutograd's graph:  %view = aten.view(%primals_1, [2, 4]);  %param = zc.param(%view, ...)
    Program:              input %a_weight: f32[2, 4] {param 'a.weight' shard=dp:0}
                          %a_weight_full: f32[8, 4] = zc.param(%a_weight, ...)

Phases and sources are stamped, parameters named and read once, every gradient reduced once,
randomness made explicit, and all types derived anew, so that passes may trust them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from zc import torch_private
from zc.capture import (
    checkpointing,
    foreach,
    markers_merge,
    microbatches,
    randomness,
    updates,
    user_collectives,
)
from zc.capture.arguments import Argument
from zc.capture.provenance import stamp_captured
from zc.errors import CaptureError
from zc.program.analysis import parameter_sources
from zc.program.collectives import hint
from zc.program.edit import node_name
from zc.program.layout import Layout
from zc.program.mesh import Mesh
from zc.program.nodes import input_of, set_input, value_of
from zc.program.printer import print_node
from zc.program.program import Program
from zc.program.retype import retype
from zc.program.stamps import BACKWARD, FORWARD, stamp_of
from zc.program.tables import Input, InputKind, Output, OutputKind, Param
from zc.program.types import derive
from zc.state.markers import GRAD, PARAM, layout_from_args


@dataclass(frozen=True)
class Traced:
    """What capture knows about one traced graph.

    ``forward_outputs`` is how many leading outputs the forward half of a joint graph returns,
    ``None`` for a graph that runs as a whole. ``at_rest`` has the layouts of sharded parameters,
    for those that nothing reads.
    """

    module: fx.GraphModule
    arguments: Sequence[Argument]
    mesh: Mesh
    name: str
    forward_outputs: int | None = None
    at_rest: dict[str, Layout] = field(default_factory=dict)


def build_program(traced: Traced) -> Program:
    """The logical program of one traced graph; the graph is taken over, not copied.

    Raises:
        CaptureError: for what cannot be expressed: an unknown random op, a full parameter that
            would leave the program, parameters on meshes of different ranks.
    """
    graph = traced.module.graph
    fake_mode = torch_private.fake_mode_of([value_of(n) for n in graph.nodes])
    program = Program(
        name=traced.name,
        level=2,
        mesh=traced.mesh,
        graphs={"step": graph},
        outputs=[],
        fake_mode=fake_mode,
        constants=_constants(traced.module),
    )
    _bind_inputs(program, traced.arguments)
    stamp_captured(graph)
    backward = any(torch_private.is_backward(n) for n in graph.nodes)
    program.training = backward
    program.level = 2 if traced.forward_outputs is None and backward else 1
    program.forward_outputs = traced.forward_outputs or 0
    _fill_params(program, traced)
    foreach.split_lists(program)
    updates.settle_updates(program)
    markers_merge.canonicalize(program)
    sums = microbatches.make_loops(program)
    user_collectives.adopt(program)
    _describe_outputs(program, sums)
    _name_inputs(program)
    randomness.make_explicit(program)
    checkpointing.recompute_tagged(program)
    graph.eliminate_dead_code(is_impure_node=_keep)
    _retype(program)
    _refuse_leaking_parameters(program)
    return program


def _constants(module: fx.GraphModule) -> dict[str, Any]:
    nodes = module.graph.find_nodes(op="get_attr")
    found = {}
    for node in nodes:
        value: Any = module
        for part in str(node.target).split("."):
            value = getattr(value, part)
        found[str(node.target)] = value
    return found


def _bind_inputs(program: Program, arguments: Sequence[Argument]) -> None:
    params = {a.name for a in arguments if a.kind == "param"}
    for index, node in enumerate(program.graph.find_nodes(op="placeholder")):
        source = torch_private.dynamo_input_index(node)
        argument = arguments[source] if source is not None else None
        value = value_of(node)
        if torch_private.is_tangent(node) and isinstance(value, torch.Tensor):
            set_input(node, Input("tangent", "", index))
        elif isinstance(value, (torch.SymInt, int, torch.SymFloat, float)):
            set_input(node, Input("symbol", argument.name if argument else "", index))
        elif not isinstance(value, torch.Tensor):
            set_input(node, Input("opaque", "", index))
        elif argument is None:
            set_input(node, Input("user", "", index))
        else:
            set_input(node, Input(_input_kind(argument, params), argument.name, index))


def _input_kind(argument: Argument, params: set[str]) -> InputKind:
    """A gradient without its parameter (clipping behind a graph break) is a tensor like any."""
    known: dict[str, InputKind] = {"param": "param", "buffer": "buffer", "grad": "grad"}
    if argument.kind == "grad" and argument.name not in params:
        return "user"
    return known.get(argument.kind, "user")


def _fill_params(program: Program, traced: Traced) -> None:
    """Enter parameters into the table: sharded and trainable ones from their markers."""
    marked = {n.args[7]: n for n in program.graph.find_nodes(op="call_function", target=PARAM)}
    for node in program.placeholders("param"):
        name = input_of(node).subject
        argument = next(a for a in traced.arguments if a.kind == "param" and a.name == name)
        marker = marked.get(argument.index)
        value = value_of(node)
        dtype, reduce_dtype = value.dtype, value.dtype
        whole = layout_from_args(value.shape, -1, "dp", traced.mesh.size("dp"), value.dtype)
        layout = traced.at_rest.get(name, whole)
        if marker is not None:
            _, shape, dim, axis, world, dtype, reduce_dtype, _ = marker.args
            layout = layout_from_args(shape, dim, axis, world, value.dtype)
        program.params[name] = Param(
            name=name,
            id=len(program.params),
            shape=layout.shape,
            dtype=value.dtype,
            compute_dtype=dtype,
            reduce_dtype=reduce_dtype,
            layouts={layout.axis: layout},
            trainable=argument.trainable,
            managed=argument.sharded,
            ties=argument.ties,
        )


def _describe_outputs(program: Program, sums: dict[fx.Node, str]) -> None:
    """Say of each output what becomes of it; gradients the user changed are the user's values.

    ``sums`` are the gradients that loops over micro-batches have added up.
    """
    program.outputs = []
    for i, value in enumerate(program.output_values()):
        forward = i < program.forward_outputs or program.level == 2 or not program.training
        kind: OutputKind = "user"
        subject = ""
        if value is None:
            kind = "none"
        elif isinstance(value, fx.Node) and not isinstance(value_of(value), torch.Tensor):
            kind = "opaque"
        elif isinstance(value, fx.Node) and value.target is GRAD:
            kind, subject = "grad", stamp_of(value).param
        elif value in sums:
            kind, subject = "grad", sums[value]
        program.outputs.append(Output(kind, subject, FORWARD if forward else BACKWARD))


def _name_inputs(program: Program) -> None:
    """Name the inputs and reads of parameters after the parameter."""
    for node in program.placeholders("param"):
        node._rename(node_name(input_of(node).subject))
        node.target = node.name
        for user in node.users:
            if user.target is PARAM:
                user._rename(f"{node.name}_read")


def _keep(node: fx.Node) -> bool:
    """What dead-code elimination must keep: inputs, the output, what writes or asserts."""
    return node.op in ("placeholder", "output") or node.is_impure()


def _retype(program: Program) -> None:
    for node in program.placeholders():
        if input_of(node).kind == "param":
            param = program.params.get(input_of(node).subject)
            if param is not None and tuple(value_of(node).shape) != param.layout.storage_shape:
                with program.fake_mode:
                    value = value_of(node)
                    node.meta["val"] = value.new_empty(param.layout.storage_shape)
        elif input_of(node).kind == "grad":
            _make_static(program, node)
    try:
        retype(program, program.graph)
    except Exception as error:
        node = _first_failing(program)
        raise CaptureError(
            f"type of {print_node(node) if node else program.name} cannot be derived: {error}; "
            f"please report this with the dump of options={{'dump': DIR}}"
        ) from error


def _make_static(program: Program, grad: fx.Node) -> None:
    """A gradient has its parameter's shape; torch makes symbols where a shard is a view."""
    value = value_of(grad)
    sizes, strides = [[hint(s) for s in given] for given in (value.shape, value.stride())]
    with program.fake_mode:
        grad.meta["val"] = value.new_empty_strided(sizes, strides)


def _first_failing(program: Program) -> fx.Node | None:
    for node in program.graph.nodes:
        if node.op == "call_function":
            try:
                derive(node, program.fake_mode)
            except Exception:  # any op may raise anything
                return node
    return None


def _refuse_leaking_parameters(program: Program) -> None:
    """A sharded parameter's full value, or its cast, must not leave: it would stay gathered."""
    sources = parameter_sources(program.graph)
    for value, info in zip(program.output_values(), program.outputs, strict=True):
        if info.kind != "user" or not isinstance(value, fx.Node):
            continue
        params = [program.params[name] for name in sorted(sources.get(value, ()))]
        size = hint(value_of(value).numel()) if params else 0
        whole = [p for p in params if not p.layout.replicated and size >= math.prod(p.shape)]
        if not whole:
            continue
        name = whole[0].name
        raise CaptureError(
            f"parameter '{name}' is read in {program.name} and its full value leaves this compiled "
            f"piece (a graph break lies between the read and its use, or the function returns it); "
            f"read the weight after the break, or remove the break: TORCH_LOGS=graph_breaks shows "
            f"it"
        )
