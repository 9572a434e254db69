"""Kernels of optimizers whose state is in 8 bits, operands for them, and how results differ."""

from functools import cache

import torch
from kernel_specs import SETTLED
from update.optimizers import ELEMENTWISE
from update.quantized_update import QuantizedRanks
from zc.codegen.blockwise import block_count
from zc.codegen.spec import Codes, KernelSpec, Operand, Scales

from zc.program.kernels import FUSED_UPDATE, spec_of

NAMES = ["sgd momentum", "adamw", "adam amsgrad", "adagrad", "adadelta", "rmsprop", "adamax"]
SIZES = [1, 0, 255, 256, 257, 1000, 5000]
Lists = list[list[torch.Tensor]]


@cache
def block_spec(name: str) -> KernelSpec:
    """The kernel of the optimizer ``name`` for one parameter, after its first steps."""
    torch.manual_seed(0)
    ranks = QuantizedRanks(1, [torch.randn(64, 16)], ELEMENTWISE[name], lower=True)
    for _ in range(SETTLED):
        ranks.step([torch.randn(64, 16)])
    program, _ = ranks.program()
    nodes = program.graph.find_nodes(op="call_function", target=FUSED_UPDATE)
    return spec_of(str(nodes[0].args[3]))


def block_operands(kernel: KernelSpec) -> Lists:
    """Random codes, positive numbers elsewhere, in tensors of ragged sizes."""
    generator = torch.Generator().manual_seed(0)

    def one(operand: Operand, size: int) -> torch.Tensor:
        if isinstance(operand, Codes):
            return torch.randint(256, (size,), generator=generator, dtype=torch.uint8)
        if isinstance(operand, Scales):
            size = block_count(size, operand.block)
        return torch.rand(size, generator=generator).add(0.1)

    return [[one(operand, size) for size in SIZES] for operand in kernel.operands]


def differences(kernel: KernelSpec, ours: Lists, theirs: Lists) -> tuple[float, int, float]:
    """Of numbers the largest difference; of codes the largest, and the share that differ."""
    worst, furthest, other, count = 0.0, 0, 0, 0
    for operand, left, right in zip(kernel.operands, ours, theirs, strict=True):
        for a, b in zip(left, right, strict=True):
            apart = (a.double() - b.double()).abs()
            if not apart.numel():
                continue
            if isinstance(operand, Codes):
                furthest = max(furthest, int(apart.max()))
                other, count = other + int((apart > 0).sum()), count + apart.numel()
            else:
                worst = max(worst, apart.max().item())
    return worst, furthest, other / count
