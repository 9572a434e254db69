"""Run every Triton kernel under ``TRITON_INTERPRET=1`` beside the reference; a script of its own.

Triton reads the variable when it is imported, so this cannot happen in the process of other tests.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from kernel_specs import NAMES, copies, numbers, operands, spec
from zc.codegen.spec import KernelSpec
from zc.codegen.torch_target import load_torch
from zc.codegen.triton_target import load_triton

TABLED = ("sgd momentum", "adamw", "scaled adamw")  # with numbers from a table as well


def main() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for name in NAMES:
            kernel = spec(name, dtype)
            ours = operands(kernel)
            theirs = copies(ours)
            load_triton(kernel)(ours, numbers(kernel))
            load_torch(kernel)(theirs, numbers(kernel))
            worst = max(
                (a.double() - b.double()).abs().max().item()
                for one, other in zip(ours, theirs, strict=True)
                for a, b in zip(one, other, strict=True)
                if a.numel()
            )
            print(f"{dtype},{name},{worst!r}", flush=True)
    for name in TABLED:
        print(f"table,{name},{_from_table(spec(name, torch.float32))!r}", flush=True)


def _from_table(kernel: KernelSpec) -> float:
    """1.0 where numbers read from a table, which is filled last, give other bits than arguments."""
    ours = operands(kernel)
    theirs = copies(ours)
    given = torch.tensor(numbers(kernel), dtype=torch.float64).to(torch.float32)
    load_triton(kernel)(ours, given.tolist())
    load_triton(kernel)(theirs, given.double())
    pairs = [
        pair
        for one, other in zip(ours, theirs, strict=True)
        for pair in zip(one, other, strict=True)
    ]
    return float(not all(torch.equal(*pair) for pair in pairs))


if __name__ == "__main__":
    main()
