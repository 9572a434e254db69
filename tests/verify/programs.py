"""Valid programs to mutate: stages 0 to 3, uneven and 16-bit parameters, an update."""

from collections.abc import Callable
from typing import Any

import torch
from tracing import Shapes, physical, program_of

from zc.program.edit import Editor
from zc.program.program import Program
from zc.program.tables import Output

aten: Any = torch.ops.aten
PARAMS: Shapes = {"w0": (8, 4), "w1": (8, 8), "w2": (8, 8), "b": (8,), "u": (3, 37)}
INPUTS: Shapes = {"x": (2, 4)}


def loss(p: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
    """Two square layers between an entry and an exit, of shapes that pack in every way."""
    dtype = p["w0"].dtype
    hidden = torch.tanh(x["x"].to(dtype) @ p["w0"].t()) + p["b"]
    hidden = torch.relu(hidden @ p["w1"]) @ p["w2"]
    return (hidden @ p["u"].reshape(-1)[:16].reshape(8, 2)).float().pow(2).mean()


def stage(zero_stage: int, **options: Any) -> Program:
    """The program of ``loss`` after ``shard_params``."""
    program = program_of(loss, PARAMS, INPUTS, sharded=zero_stage > 0, **options)
    return physical(program, zero_stage)


def updated(zero_stage: int = 3) -> Program:
    """The same with an update: each shard becomes itself less a tenth of its gradient."""
    program = stage(zero_stage)
    output = program.output_node()
    loss_value, *grads = program.output_values()
    edit = Editor(program, program.graph, "shard_update")
    with edit.before(output, phase="update"):
        for shard, grad in zip(program.placeholders("param"), grads, strict=True):
            scaled = edit.call(aten.mul.Tensor, grad, 0.1)
            stepped = edit.call(aten.sub.Tensor, shard, scaled)
            edit.call(aten.copy_.default, shard, stepped)
    output.args = ([loss_value],)
    program.outputs = [Output("user")]
    return program


PROGRAMS: dict[str, Callable[[], Program]] = {
    "zero0": lambda: stage(0),
    "zero1": lambda: stage(1),
    "zero2": lambda: stage(2),
    "zero3": lambda: stage(3),
    "zero3_bf16": lambda: stage(3, compute_dtype=torch.bfloat16),
    "zero1_looped": lambda: stage(1, count=2),
    "zero3_looped": lambda: stage(3, count=2),
    "zero3_updated": lambda: updated(3),
}
