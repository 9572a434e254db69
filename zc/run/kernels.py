"""Loading generated kernels for the device they run on."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import fx

from zc import torch_private
from zc.clock import spending
from zc.codegen.cpp_target import load_cpp
from zc.codegen.spec import KernelSpec
from zc.codegen.torch_target import Run, load_torch
from zc.program.kernels import operand_lists, spec_of
from zc.program.nodes import value_of
from zc.program.rounding import places_on
from zc.run.compile import can_compile
from zc.run.effects import own_rank


def bind_kernel(node: fx.Node) -> Callable[..., None]:
    """A function in place of ``zc.fused_update``, compiled for where its operands are.

    Or in place of ``zc.update_from``, whose numbers are in a tensor.
    """
    written: Any = node.args[0]
    places: Any = node.args[5] if len(node.args) > 5 else []
    rows = places_on(own_rank(places, str(node.args[6])), places) if places else []
    spec = spec_of(str(node.args[3]))
    target = usable_target(str(node.args[4]), value_of(written[0]).device)
    with spending("kernels of updates"):
        run = load(spec, target)

    def fused_update(
        written: Sequence[torch.Tensor], read: Sequence[torch.Tensor], numbers: Any, *_: Any
    ) -> None:
        if isinstance(numbers, torch.Tensor) and target != "triton":
            numbers = numbers.tolist()
        run(operand_lists(spec, written, read), numbers, rows)
        torch.autograd.graph.increment_version(list(written))

    return fused_update


def usable_target(wanted: str, device: torch.device) -> str:
    """``wanted``; ``auto`` is triton on GPUs and cpu elsewhere, eager without a C++ compiler."""
    if wanted != "auto":
        return wanted
    if device.type != "cpu":
        return "triton"
    return "cpu" if can_compile() else "eager"


@cache
def load(spec: KernelSpec, target: str) -> Run:
    """The kernel for one target."""
    if target == "triton":
        from zc.codegen.triton_target import load_triton

        return load_triton(spec)
    return load_torch(spec) if target == "eager" else load_cpp(spec, torch_private.cpp_compiler())
