"""Generated kernels in a program: one node for a list of tensors.

    %fused_update = zc.fused_update([%w0, ...], [%w0_grad, ...], [%neg, ...], "adamw_1f2e", "auto")

The lists are those of the kernel's operands, one behind the other: first what it writes, then what
it only reads. What it computes is its ``KernelSpec``, kept here under the name in the node. Where
it rounds stochastically, the place of each tensor (``zc.program.rounding``) and the axis follow.
"""

from collections.abc import Sequence
from typing import Any

import torch

from zc.codegen.spec import KernelSpec
from zc.codegen.torch_target import load_torch
from zc.program.rounding import places_on

_library = torch.library.Library("zc", "FRAGMENT")
_library.define(
    "fused_update(Tensor(a!)[] written, Tensor[] read, float[] numbers, str kernel, str target,"
    " int[] places=[], str axis='') -> ()"
)
FUSED_UPDATE: Any = torch.ops.zc.fused_update.default
_specs: dict[str, KernelSpec] = {}


def remember(spec: KernelSpec) -> str:
    """The name of ``spec`` in programs, made from what it computes."""
    name = f"{spec.name}_{spec.digest}"
    _specs[name] = spec
    return name


def spec_of(name: str) -> KernelSpec:
    """The kernel that goes by ``name``."""
    return _specs[name]


def operand_lists(
    spec: KernelSpec, written: Sequence[Any], read: Sequence[Any]
) -> list[Sequence[Any]]:
    """The tensors of each operand, in the order of ``spec.operands``."""
    writes = sum(operand.writes for operand in spec.operands)
    count = len(written) // writes
    every = [*written, *read]
    return [every[i * count : (i + 1) * count] for i in range(len(spec.operands))]


@torch.library.register_fake("zc::fused_update")
def _fused_update_type(
    written: Any,
    read: Any,
    numbers: Any,
    kernel: str,
    target: str,
    places: Any = (),
    axis: str = "",
) -> None:
    return None


def run_kernel(
    rank: int, written: Any, read: Any, numbers: Sequence[float], kernel: str, places: Any = ()
) -> None:
    """The kernel on ``rank`` of its axis, as the reference has it."""
    spec = spec_of(kernel)
    load_torch(spec)(operand_lists(spec, written, read), numbers, places_on(rank, places))


def _fused_update_now(
    written: Any,
    read: Any,
    numbers: Any,
    kernel: str,
    target: str,
    places: Any = (),
    axis: str = "",
) -> None:
    run_kernel(0, written, read, numbers, kernel, places)


_library.impl("fused_update", _fused_update_now, "CompositeExplicitAutograd")
