"""Kernels of real optimizers, and random operands for them."""

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from update.lockstep_update import SimulatedRanks
from update.optimizers import ELEMENTWISE, WHOLE
from zc.codegen.spec import KernelSpec
from zc.passes.lower_update import LowerUpdate

from zc.program.kernels import FUSED_UPDATE, spec_of
from zc.program.program import Program
from zc.state.step import UPDATE

SCALED = ["scaled sgd momentum", "scaled adamw", "scaled sign"]  # a factor, and whether to skip
NAMES = [n for n in ELEMENTWISE if n != "adamw tensor lr"] + SCALED
SIZES = [1, 0, 1000, 1024, 5000]
SETTLED = 6  # steps behind which every optimizer is on the path that it stays on


class ScaledRanks(SimulatedRanks):
    """Simulated ranks whose program asks a loss scaler before it steps, once ``scaled`` is set."""

    scaled = False

    def logical(self) -> tuple[Program, Any]:
        program, traced = super().logical()
        if self.scaled:
            program.updates = [replace(traced.update, scaler=0, handle=0)]
            (marker,) = program.graph.find_nodes(op="call_function", target=UPDATE)
            marker.args = (*marker.args, 0)
        return program, traced


@cache
def spec(name: str, dtype: torch.dtype = torch.float32) -> KernelSpec:
    """The kernel of the optimizer ``name`` for one parameter, after its first steps."""
    torch.manual_seed(0)
    value = torch.randn(64, 16).to(dtype)
    ranks = ScaledRanks(1, [value], (ELEMENTWISE | WHOLE)[name.removeprefix("scaled ")])
    for _ in range(SETTLED):
        ranks.step([torch.randn(64, 16).to(dtype)])
    ranks.scaled = name in SCALED
    program, _ = ranks.program()
    LowerUpdate().run(program)
    nodes = program.graph.find_nodes(op="call_function", target=FUSED_UPDATE)
    return spec_of(str(nodes[0].args[3]))


def operands(kernel: KernelSpec, seed: int = 0) -> list[list[torch.Tensor]]:
    """Positive numbers for every operand, in tensors of ragged sizes, none of them aligned.

    Conditions hold in every second row.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for operand in kernel.operands:
        kind = getattr(torch, operand.dtype)
        if kind is torch.bool:
            found.append([torch.tensor(row % 2 == 1) for row in range(len(SIZES))])
            continue
        sizes = [() if operand.scalar else (n,) for n in SIZES]
        found.append([torch.rand(n, generator=generator).add(0.1).to(kind) for n in sizes])
    return found


def numbers(kernel: KernelSpec) -> list[float]:
    """Numbers between 0 and 1 for its arguments."""
    return [0.9 / (1 + i) for i in range(len(kernel.numbers))]


def copies(lists: list[list[torch.Tensor]]) -> list[list[torch.Tensor]]:
    """The same operands again."""
    return [[tensor.clone() for tensor in tensors] for tensors in lists]
