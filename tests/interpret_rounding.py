"""Run the rounding kernel under ``TRITON_INTERPRET=1`` beside the reference; a script of its own.

Prints how many elements have other bits, by operand, and how many were rounded away.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from kernel_specs import copies
from rounding_kernel import PLACES, STEP, operands, spec
from zc.codegen.torch_target import load_torch
from zc.codegen.triton_target import load_triton


def main() -> None:
    ours = operands()
    theirs, before = copies(ours), copies(ours)
    load_triton(spec())(ours, [STEP], PLACES)
    load_torch(spec())(theirs, [STEP], PLACES)
    for one, other, old in zip(ours, theirs, before, strict=True):
        pairs = list(zip(one, other, strict=True))
        differ = sum(int((~torch.isclose(a, b, 0, 0, equal_nan=True)).sum()) for a, b in pairs)
        moved = sum(int((a != b).sum()) for a, b in zip(one, old, strict=True))
        print(differ, moved, flush=True)


if __name__ == "__main__":
    main()
