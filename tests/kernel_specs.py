"""Kernels of real optimizers, and random operands for them."""

from functools import cache

import torch
from update.lockstep_update import SimulatedRanks
from update.optimizers import ELEMENTWISE, WHOLE
from zc.codegen.spec import KernelSpec
from zc.passes.lower_update import LowerUpdate

from zc.program.kernels import FUSED_UPDATE, spec_of

NAMES = [n for n in ELEMENTWISE if n != "adamw tensor lr"]
SIZES = [1, 0, 1000, 1024, 5000]
SETTLED = 6  # steps behind which every optimizer is on the path that it stays on


@cache
def spec(name: str, dtype: torch.dtype = torch.float32) -> KernelSpec:
    """The kernel of the optimizer ``name`` for one parameter, after its first steps."""
    torch.manual_seed(0)
    value = torch.randn(64, 16).to(dtype)
    ranks = SimulatedRanks(1, [value], (ELEMENTWISE | WHOLE)[name])
    for _ in range(SETTLED):
        ranks.step([torch.randn(64, 16).to(dtype)])
    program, _ = ranks.program()
    LowerUpdate().run(program)
    nodes = program.graph.find_nodes(op="call_function", target=FUSED_UPDATE)
    return spec_of(str(nodes[0].args[3]))


def operands(kernel: KernelSpec, seed: int = 0) -> list[list[torch.Tensor]]:
    """Positive numbers for every operand, in tensors of ragged sizes, none of them aligned."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for operand in kernel.operands:
        kind = getattr(torch, operand.dtype)
        sizes = [() if operand.scalar else (n,) for n in SIZES]
        offset = -0.5 if operand.dtype == "bool" else 0.1
        drawn = [torch.rand(n, generator=generator).add(offset) for n in sizes]
        found.append([x.gt(0) if kind is torch.bool else x.to(kind) for x in drawn])
    return found


def numbers(kernel: KernelSpec) -> list[float]:
    """Numbers between 0 and 1 for its arguments."""
    return [0.9 / (1 + i) for i in range(len(kernel.numbers))]


def copies(lists: list[list[torch.Tensor]]) -> list[list[torch.Tensor]]:
    """The same operands again."""
    return [[tensor.clone() for tensor in tensors] for tensors in lists]
