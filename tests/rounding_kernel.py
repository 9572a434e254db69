"""A kernel that adds, exact in fp32, and rounds stochastically: equal bits are expected."""

import torch
from zc.codegen.rounding import Place, seed_word
from zc.codegen.spec import KernelSpec, Number, Operand, Statement

SIZES = [1, 0, 1000, 1024, 5000, 40_000]
ENTRIES = 6
PLACES = [Place(i, 7 if i % 2 else 60_000, 21, 100 * i) for i in range(len(SIZES))]
STEP = 12345.0
# no subnormal numbers, which Triton's interpreter stores as 0
SPECIAL = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-37, 3.3895e38, -1.5]


def spec(seed: int = 7) -> KernelSpec:
    """Each of several bf16 tensors gets its own rounding of itself and the same fp32 summand."""
    names = [f"x{i}" for i in range(ENTRIES)]
    operands = [Operand(name, "bfloat16", reads=True, writes=True) for name in names]
    sums = [
        Statement(f"t{i}", "aten.add.Tensor", (("0", f"x{i}"), ("1", "grad"))) for i in range(6)
    ]
    rounded = [
        Statement(
            f"new_x{i}",
            "zc.round_stochastic",
            (("0", f"t{i}"), ("1", "c0"), ("2", hex(seed_word(seed))), ("3", hex(i))),
        )
        for i in range(ENTRIES)
    ]
    return KernelSpec(
        "rounding",
        (*operands, Operand("grad", "float32")),
        (Number("c0", "rounding_step % 16777216"),),
        (*sums, *rounded),
        tuple((name, f"new_{name}") for name in names),
    )


def operands() -> list[list[torch.Tensor]]:
    """Numbers of all sizes; the last tensor begins with special ones."""
    draws = torch.Generator().manual_seed(0)
    found = [
        [torch.randn(n, generator=draws).to(torch.bfloat16) for n in SIZES] for _ in range(ENTRIES)
    ]
    grads = [torch.randn(n, generator=draws) * 1e-2 for n in SIZES]
    for tensors in found:
        tensors[-1][: len(SPECIAL)] = 0.0
    grads[-1][: len(SPECIAL)] = torch.tensor(SPECIAL)
    return [*found, grads]
