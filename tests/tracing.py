"""Programs from Python functions, for tests: ``program_of`` traces a training step.

    def loss(p, x):
        return (torch.tanh(x["x"] @ p["w0"].t()) @ p["w1"]).sum()

    program = program_of(loss, {"w0": (8, 4), "w1": (8, 3)}, {"x": (2, 4)})

The program is logical: parameters enter through ``zc::param``, gradients leave through
``zc::grad``, and its outputs are the loss and the gradient of each parameter. ``physical`` applies
``shard_params`` to it.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx

from zc.capture.microbatches import make_loops
from zc.program.layout import Layout, choose_layout
from zc.program.mesh import Mesh
from zc.program.nodes import set_input
from zc.program.program import Program
from zc.program.retype import retype
from zc.program.stamps import Stamp, set_stamp
from zc.program.tables import Input, Output, Param
from zc.run.lockstep import shard_inputs
from zc.state import markers
from zc.state.microbatches import JOIN, SPLIT
from zc.torch_private import fake_mode_of

Shapes = dict[str, tuple[int, ...]]
Loss = Callable[[dict[str, torch.Tensor], dict[str, torch.Tensor]], torch.Tensor]
AXIS = "dp"


def program_of(
    fn: Loss,
    params: Shapes,
    inputs: Shapes,
    world: int = 4,
    *,
    compute_dtype: torch.dtype = torch.float32,
    reduce_dtype: torch.dtype = torch.float32,
    sharded: bool = True,
    count: int = 0,
) -> Program:
    """The logical program of one step of ``fn(params, inputs) -> loss`` on ``world`` ranks.

    With a ``count``, of the mean over so many micro-batches.
    """
    table = {
        name: Param(
            name,
            i,
            shape,
            torch.float32,
            compute_dtype,
            reduce_dtype,
            {AXIS: _layout(shape, world, sharded)},
        )
        for i, (name, shape) in enumerate(params.items())
    }
    mode = fake_mode_of([])
    with mode:
        shards = {
            name: torch.empty(p.layout.storage_shape, requires_grad=True)
            for name, p in table.items()
        }
        batch = {name: torch.empty(shape) for name, shape in inputs.items()}
    forward: set[str] = set()

    def step(shards: dict[str, torch.Tensor], batch: dict[str, torch.Tensor]) -> list[Any]:
        fulls = {name: _read(shard, table[name]) for name, shard in shards.items()}
        if count:
            batch = dict(zip(batch, SPLIT(list(batch.values()), count), strict=True))
        loss = fn(fulls, batch)
        forward.update(node.name for node in get_proxy_mode().tracer.graph.nodes)
        grads = torch.autograd.grad(loss, list(shards.values()), allow_unused=True)
        return [*(JOIN([loss.detach()], count, "mean") if count else [loss]), *grads]

    with mode:
        graph = make_fx(step)(shards, batch).graph
    return _program(graph, table, list(inputs), forward, mode)


def physical(program: Program, zero_stage: int = 3, **options: Any) -> Program:
    """``program`` itself, after ``shard_params``."""
    from zc.passes.shard_params import ShardParams

    ShardParams(zero_stage=zero_stage, **options).run(program)
    return program


def random_inputs(program: Program, inputs: Shapes, seed: int = 0) -> list[list[Any]]:
    """Inputs of every rank: the same parameters, different batches."""
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    params = {name: draw(p.shape) for name, p in program.params.items()}
    return [
        shard_inputs(program, params, rank, {name: draw(shape) for name, shape in inputs.items()})
        for rank in range(math.prod(size for _, size in program.mesh.axes))
    ]


def _layout(shape: tuple[int, ...], world: int, sharded: bool) -> Layout:
    return choose_layout(shape, world, AXIS) if sharded else Layout(AXIS, world, shape, None)


def _read(shard: torch.Tensor, param: Param) -> torch.Tensor:
    layout = param.layout
    where = (-1 if layout.dim is None else layout.dim, layout.axis, layout.world)
    dtypes = (param.compute_dtype, param.reduce_dtype)
    return torch.ops.zc.param(shard, list(param.shape), *where, *dtypes, param.id)


def _program(
    graph: fx.Graph, table: dict[str, Param], inputs: list[str], forward: set[str], mode: Any
) -> Program:
    """Wrap a traced graph: inputs, outputs and stamps as capture would set them."""
    kinds = [("param", name) for name in table] + [("user", name) for name in inputs]
    placeholders = graph.find_nodes(op="placeholder")
    for index, (node, (kind, name)) in enumerate(zip(placeholders, kinds, strict=True)):
        set_input(node, Input(kind, name, index))
        set_stamp(node, Stamp(param=name if kind == "param" else ""))
        node._rename(name.replace(".", "_"))
    for node in graph.nodes:
        if node.op == "call_function":
            phase = "forward" if node.name in forward else "backward"
            is_marker = node.target in (markers.PARAM, markers.GRAD)
            name = list(table)[node.args[-1]] if is_marker else ""
            set_stamp(node, Stamp(phase=phase, param=name, source="model.py:1"))
    for node in graph.find_nodes(op="call_function", target=markers.PARAM):
        node._rename(f"{node.args[0].name}_read")
    output_node = graph.output_node()
    output_node.args = (list(output_node.args[0]),)
    grads = zip(table, output_node.args[0][1:], strict=True)
    outputs = [Output("grad" if value is not None else "none", n, "backward") for n, value in grads]
    (param, *_) = table.values()
    program = Program(
        name="model.py:1 step",
        level=2,
        mesh=Mesh(((AXIS, param.layout.world),)),
        graphs={"step": graph},
        outputs=[Output("user"), *outputs],
        params=table,
        fake_mode=mode,
        forward_outputs=1,
    )
    make_loops(program)
    retype(program, graph)
    return program
