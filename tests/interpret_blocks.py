"""Kernels on state in 8 bits under ``TRITON_INTERPRET=1`` beside the reference; a script.

See ``interpret_triton.py``.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from block_specs import NAMES, block_operands, block_spec, differences
from kernel_specs import copies, numbers
from zc.codegen.torch_target import load_torch
from zc.codegen.triton_target import load_triton


def main() -> None:
    for name in NAMES:
        kernel = block_spec(name)
        ours = block_operands(kernel)
        theirs = copies(ours)
        load_triton(kernel)(ours, numbers(kernel))
        load_torch(kernel)(theirs, numbers(kernel))
        print(name, *differences(kernel, ours, theirs), sep=",", flush=True)


if __name__ == "__main__":
    main()
