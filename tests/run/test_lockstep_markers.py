"""Markers mean under lockstep, bit for bit, what they do on a real process group."""

from typing import Any

import torch
from multiprocess import run_ranks
from torch import fx

from zc.program.edit import Editor
from zc.program.layout import Layout, choose_layout
from zc.program.mesh import Mesh
from zc.program.nodes import set_input
from zc.program.packing import local_view, pack, run_op
from zc.program.program import Program
from zc.program.tables import Input, Output
from zc.run.lockstep import lockstep
from zc.state.markers import GRAD, PARAM
from zc.torch_private import fake_mode_of

WORLD = 2
SHAPES = [(8, 4), (5, 3), (5, 32), (1, 37), (16,), (), (3, 1, 7)]
DTYPES = [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.bfloat16,) * 2]
CASES = [(shape, *dtypes) for shape in SHAPES for dtypes in DTYPES]


def where(layout: Layout) -> tuple[Any, ...]:
    dim = -1 if layout.dim is None else layout.dim
    return list(layout.shape), dim, layout.axis, layout.world


def draw(shape: tuple[int, ...]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A full parameter, and the gradient that each rank computes for it."""
    generator = torch.Generator().manual_seed(len(shape) + sum(shape))
    full, *grads = (torch.randn(shape, generator=generator) for _ in range(1 + WORLD))
    return full, grads


def shard_of(full: torch.Tensor, layout: Layout, rank: int) -> torch.Tensor:
    if layout.replicated:
        return full
    return pack(run_op, full, layout, contiguous=True).chunk(layout.world)[rank].clone()


def local_of(stored: torch.Tensor, layout: Layout, rank: int) -> torch.Tensor:
    return stored if layout.replicated else local_view(stored, layout, layout.local_shape(rank))


def run_markers(rank: int, world: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.set_num_threads(1)
    results = []
    for shape, compute_dtype, reduce_dtype in CASES:
        layout = choose_layout(shape, world, "dp")
        full, grads = draw(shape)
        stored = shard_of(full, layout, rank)
        local = (
            stored if layout.replicated else local_view(stored, layout, layout.local_shape(rank))
        )
        read = PARAM(local, *where(layout), compute_dtype, reduce_dtype)
        grad = grads[rank].to(compute_dtype)
        local_shape = list(local.shape)
        reduced = GRAD(grad, local_shape, *where(layout), reduce_dtype, torch.float32)
        results.append((read, reduced.clone()))
    return results


def marker_program(layout: Layout, *dtypes: torch.dtype) -> Program:
    """``zc.param`` of the first input and ``zc.grad`` of the second."""
    compute_dtype, reduce_dtype = dtypes
    mode = fake_mode_of([])
    graph = fx.Graph()
    shard, grad = graph.placeholder("shard"), graph.placeholder("grad")
    with mode:
        shard.meta["val"] = torch.empty(layout.storage_shape)
        grad.meta["val"] = torch.empty(layout.shape, dtype=compute_dtype)
    for index, node in enumerate((shard, grad)):
        set_input(node, Input("user", node.name, index))
    output = graph.output([])
    outputs = [Output("user"), Output("user")]
    program = Program("test", 2, Mesh((("dp", WORLD),)), {"step": graph}, outputs, fake_mode=mode)
    edit = Editor(program, graph, "test")
    with edit.before(output):
        read = edit.call(PARAM, shard, *where(layout), compute_dtype, reduce_dtype)
        stored = list(layout.storage_shape)
        kept = edit.call(GRAD, grad, stored, *where(layout), reduce_dtype, torch.float32)
    output.args = ([read, kept],)
    return program


def test_markers_on_a_group() -> None:
    eager = run_ranks(run_markers, WORLD)
    for case, (shape, compute_dtype, reduce_dtype) in enumerate(CASES):
        layout = choose_layout(shape, WORLD, "dp")
        full, grads = draw(shape)
        inputs = [
            [shard_of(full, layout, rank), grads[rank].to(compute_dtype)] for rank in range(WORLD)
        ]
        simulated = lockstep(marker_program(layout, compute_dtype, reduce_dtype), inputs)
        for rank in range(WORLD):
            (read, reduced), (expected_read, expected) = simulated[rank], eager[rank][case]
            assert torch.equal(read, expected_read)
            assert read.dtype == expected_read.dtype
            assert torch.equal(local_of(reduced, layout, rank), expected)
