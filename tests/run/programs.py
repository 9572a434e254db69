"""Programs as executors run them: traced, sharded over one rank, without communication."""

from typing import Any

import torch
from tracing import Shapes, physical, program_of

from zc.program.program import Program
from zc.run.executor import build_loop

Tensors = dict[str, torch.Tensor]
LAYERS: Shapes = {f"w{i}": (16, 16) for i in range(4)}
BATCH: Shapes = {"x": (4, 16)}


def layers(p: Tensors, x: Tensors) -> torch.Tensor:
    """Layers that are alike."""
    hidden = x["x"]
    for weight in p.values():
        hidden = torch.tanh(hidden @ weight) + 1
    return hidden.sum()


def layered(params: Shapes = LAYERS, world: int = 1, zero_stage: int = 3) -> Program:
    return physical(program_of(layers, params, BATCH, world), zero_stage)


def run(program: Program, executor: str, values: list[torch.Tensor]) -> list[Any]:
    """What the loop of ``program`` returns for ``values``."""
    loop = build_loop(program, program.graph, program.outputs, executor, "step")
    with torch.no_grad():
        return loop([v.clone() for v in values])


def random_values(program: Program) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [tuple(node.meta["val"].shape) for node in program.placeholders()]
    return [torch.randn(shape, generator=generator) for shape in shapes]
