"""The program of an optimizer's step that no compiled function surrounds.

    input %w: f32[2, 4]  {param 'w' shard=dp:0}
    input %w_grad: f32[2, 4]  {grad 'w'}
    -- update --
    %update = zc.update([%w], [%w_grad], 0)

Parameters come with the gradients that they have now; nothing is traced by Dynamo.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx
from torch.distributed.tensor import DTensor

from zc import torch_private
from zc.comm.groups import DEFAULT_AXIS
from zc.program.edit import node_name
from zc.program.layout import Layout
from zc.program.mesh import Mesh
from zc.program.nodes import set_input
from zc.program.program import Program
from zc.program.stamps import UPDATE, Stamp, set_stamp
from zc.program.tables import Input, Param
from zc.state.markers import layout_from_args
from zc.state.reading import local_of
from zc.state.spec import spec_of
from zc.state.step import UPDATE as MARKER
from zc.update.trace import like


@dataclass(frozen=True)
class Stepped:
    """A parameter that has a gradient, under the name that it has in the program."""

    name: str
    param: torch.Tensor
    grad: torch.Tensor  # this rank's block of it


def lone_step(name: str, stepped: Sequence[Stepped], mesh: Mesh) -> Program:
    """The logical program ``name``: every parameter, its gradient, and the marker."""
    program = Program(
        name=name,
        level=2,
        mesh=mesh,
        graphs={"step": fx.Graph()},
        outputs=[],
        fake_mode=torch_private.fake_mode_of([]),
        training=False,
    )
    params = [_param_input(program, item, i) for i, item in enumerate(stepped)]
    grads = [_grad_input(program, item, len(params) + i) for i, item in enumerate(stepped)]
    marker = program.graph.call_function(MARKER, (params, grads, 0))
    marker.meta["val"] = None
    set_stamp(marker, Stamp(phase=UPDATE))
    program.graph.output([])
    return program


def _param_input(program: Program, item: Stepped, index: int) -> fx.Node:
    param, layout = item.param, layout_of(item.param, program.mesh)
    program.params[item.name] = Param(
        name=item.name,
        id=index,
        shape=layout.shape,
        dtype=param.dtype,
        compute_dtype=param.dtype,
        reduce_dtype=param.dtype,
        layouts={layout.axis: layout},
        managed=isinstance(param, DTensor),
    )
    return _input(program, Input("param", item.name, index), local_of(param), layout)


def _grad_input(program: Program, item: Stepped, index: int) -> fx.Node:
    layout = program.params[item.name].layout
    return _input(program, Input("grad", item.name, index), item.grad, layout)


def _input(program: Program, info: Input, value: torch.Tensor, layout: Layout) -> fx.Node:
    """An input of the type of ``value``, or of the storage of a shard."""
    name = info.subject if info.kind == "param" else f"{info.subject}_grad"
    node = program.graph.placeholder(node_name(name))
    node.meta["val"] = like(value, program.fake_mode)
    if not layout.replicated:
        with program.fake_mode:
            node.meta["val"] = node.meta["val"].new_empty(layout.storage_shape)
    set_input(node, info)
    set_stamp(node, Stamp(param=info.subject if info.kind == "param" else ""))
    return node


def layout_of(param: torch.Tensor, mesh: Mesh) -> Layout:
    """How ``param`` lies: as ``zc.shard`` put it, or whole on every rank."""
    spec = spec_of(param)
    if spec is not None:
        return spec.layout
    world = mesh.size(DEFAULT_AXIS)
    return layout_from_args(param.shape, -1, DEFAULT_AXIS, world, param.dtype)
