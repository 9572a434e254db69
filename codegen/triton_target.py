"""Target ``triton``: one launch for a list of tensors, for NVIDIA and AMD GPUs.

The grid is one program for each block of ``BLOCK`` elements of all tensors, one behind the other.
``starts`` has the first block of each tensor; a program finds its own by bisection. Numbers are
arguments; given as a tensor, they are read from there, which a recorded launch does at each replay.
"""

import importlib.util
import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from zc.codegen import rounding, triton_blocks
from zc.codegen.host_lock import locked
from zc.codegen.rounding import Place
from zc.codegen.source import source_of
from zc.codegen.spec import Codes, KernelSpec, Operand, Scales
from zc.codegen.tables import table_of
from zc.codegen.torch_target import Run

BLOCK = 1024
PREFIX = r"tl.\1("
_IN_LANGUAGE = re.compile(
    r"\b(abs|ceil|cos|erf|exp|floor|log|log2|maximum|minimum|rsqrt|sigmoid|sin|sqrt|where)\("
)
_TYPES = {"float32": "tl.float32", "float64": "tl.float64", "bfloat16": "tl.bfloat16",
          "float16": "tl.float16", "bool": "tl.int8", "uint8": "tl.uint8"}  # fmt: skip
_PRELUDE = '''\
import triton
import triton.language as tl
from triton.language.extra.libdevice import pow, tanh


@triton.jit
def lerp(x, y, w):
    return tl.where(w < 0.5, x + w * (y - x), y - (y - x) * (1 - w))


@triton.jit
def sign(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))


@triton.jit
def reciprocal(x):
    return 1.0 / x


@triton.jit
def own_tensor(starts, count, block):
    """The last tensor that starts at ``block`` or before."""
    low, high = 0, count - 1
    while low < high:
        middle = (low + high + 1) // 2
        after = tl.load(starts + middle) > block
        high = tl.where(after, middle - 1, high)
        low = tl.where(after, low, middle)
    return low
'''
_FIND = """\
    block = tl.program_id(0)
    tensor = own_tensor(starts, count, block)
    first = (block - tl.load(starts + tensor)) * BLOCK
    size = tl.load(sizes + tensor)
    offset = first + tl.arange(0, BLOCK)
"""
_TABLES = "pointers, sizes, starts, count"
_COUNT = """\
    inner = tl.load(places + 3 * tensor)
    outer = tl.load(places + 3 * tensor + 1)
    row = offset // inner
    counter = tl.load(places + 3 * tensor + 2) + row * outer + (offset - row * inner)
"""


def render_triton(spec: KernelSpec, *, from_table: bool = False) -> str:
    """Triton source: ``<name>_block`` is what happens, ``<name>_kernel`` finds where.

    With ``from_table``, the kernel has a pointer to its numbers in place of the numbers.
    """
    read, written = spec.bytes_per_element()
    summary = f"{spec.name}: reads {read} and writes {written} bytes for each element."
    prelude = _PRELUDE + (rounding.TRITON if spec.placed else "") + triton_blocks.prelude(spec)
    grid = _grid_lines(spec, from_table)
    lines = [f'"""{summary}"""', "", prelude, "", *_block_lines(spec), "", "", *grid]
    return "\n".join(lines) + "\n"


def _block_lines(spec: KernelSpec) -> list[str]:
    places = [f"{operand.name}_at" for operand in spec.operands]
    numbers = [number.name for number in spec.numbers] + ["counter"] * spec.placed
    given = ", ".join([*places, "inside", *numbers, *triton_blocks.parameters(spec)])
    lines = ["@triton.jit", f"def {spec.name}_block({given}):"]
    lines += [f"    # {n.name} = {n.meaning}" for n in spec.numbers]
    lines += [line for o in spec.values if o.reads for line in _load(spec, o)]
    lines += [f"    {s.name} = {_IN_LANGUAGE.sub(PREFIX, s.text())}" for s in spec.body]
    return lines + [line for place, value in spec.stores for line in _store(spec, place, value)]


def _load(spec: KernelSpec, operand: Operand) -> list[str]:
    if isinstance(operand, Codes):
        return triton_blocks.load(operand)
    wide = f".to({_TYPES[spec.compute_dtype]})"
    kind = " != 0" if operand.dtype == "bool" else wide
    mask = "" if operand.scalar else ", mask=inside"
    return [f"    {operand.name} = tl.load({operand.name}_at{mask}){kind}"]


def _store(spec: KernelSpec, place: str, value: str) -> list[str]:
    codes = next((o for o in spec.codes if o.name == place), None)
    if codes is not None:
        return triton_blocks.store(codes, value)
    return [f"    tl.store({place}_at, {value}, mask=inside)"]


def _grid_lines(spec: KernelSpec, from_table: bool) -> list[str]:
    names = ["numbers"] if from_table else [n.name for n in spec.numbers]
    numbers = "".join(f"{name}, " for name in names)
    places = ", ".join(f"{operand.name}_at" for operand in spec.operands)
    further = triton_blocks.arguments(spec)
    own = [*(n.name for n in spec.numbers), *(["counter"] * spec.placed)]
    rest = "".join(f", {name}" for name in (*own, *further))
    tables = "pointers, sizes, starts, places, count" if spec.placed else _TABLES
    lines = ["@triton.jit", f"def {spec.name}_kernel("]
    lines += [f"    {tables}, {numbers}BLOCK: tl.constexpr", "):"]
    lines += [*_FIND.splitlines(), *(_COUNT.splitlines() if spec.placed else [])]
    if from_table:
        read = "tl.load(numbers + {}).to(tl.float32)"  # as wide as an argument
        lines += [f"    {n.name} = {read.format(i)}" for i, n in enumerate(spec.numbers)]
    for index, operand in enumerate(spec.operands):
        kind = f"tl.pointer_type({_TYPES[operand.dtype]})"
        lines.append(f"    address = tl.load(pointers + {index} * count + tensor).to({kind})")
        lines.append(f"    {operand.name}_at = {_place(operand)}")
    lines += triton_blocks.grid_lines(spec)
    lines += ["    if first + BLOCK <= size:  # whole vectors, no mask"]
    lines += ["        inside = tl.full((BLOCK,), True, tl.int1)"]
    lines += [f"        {spec.name}_block({places}, inside{rest})", "    else:"]
    return [*lines, f"        {spec.name}_block({places}, offset < size{rest})"]


def _place(operand: Operand) -> str:
    """Where the elements of a program are, from the ``address`` of their tensor."""
    if operand.scalar:
        return "address"
    own = f"offset // {operand.block}" if isinstance(operand, Scales) else "offset"
    return f"tl.multiple_of(address, 16) + {own}"


def load_triton(spec: KernelSpec) -> Run:
    """The kernel as a function on lists of tensors on one device."""
    kernels = {False: _kernel(spec, False)}
    launched: set[bool] = set()
    tables: dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor, int]] = {}
    lying: dict[tuple[Place, ...], torch.Tensor] = {}

    def run(
        operands: Sequence[Sequence[torch.Tensor]],
        numbers: Sequence[float] | torch.Tensor,
        places: Sequence[Place] = (),
    ) -> None:
        from_table = isinstance(numbers, torch.Tensor)
        device = operands[0][0].device
        key = tuple(tensor.numel() for tensor in operands[0])
        if key not in tables:
            tables[key] = _blocks(key, device)
        sizes, starts, total = tables[key]
        if total == 0:
            return
        addresses = [tensor.data_ptr() for tensors in operands for tensor in tensors]
        pointers = table_of(addresses, torch.int64, device)
        given: list[Any] = [pointers, sizes, starts]
        if spec.placed:
            at = tuple(places)
            if at not in lying:
                lying[at] = _lying(at, device)
            given.append(lying[at])
        given += [len(key), *([numbers] if from_table else numbers)]
        if from_table not in kernels:
            kernels[from_table] = _kernel(spec, from_table)
        kernel, lock = kernels[from_table]
        with nullcontext() if from_table in launched else locked(lock):  # the first one compiles
            kernel[(total,)](*given, BLOCK=BLOCK, enable_fp_fusion=True)
        launched.add(from_table)

    return run


def _kernel(spec: KernelSpec, from_table: bool) -> tuple[Any, Path]:
    """The kernel, and the file that one process of a host locks while it compiles it."""
    path = source_of(spec, "triton", render_triton(spec, from_table=from_table))
    return getattr(_module(path), f"{spec.name}_kernel"), path.with_suffix(".lock")


def _blocks(sizes: Sequence[int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Sizes, first block of each tensor, and number of blocks."""
    starts, total = [], 0
    for size in sizes:
        starts.append(total)
        total += -(-size // BLOCK)
    kind: dict[str, Any] = {"dtype": torch.int64, "device": device}
    return torch.tensor(list(sizes), **kind), torch.tensor(starts, **kind), total


def _lying(places: Sequence[Place], device: torch.device) -> torch.Tensor:
    rows = [n for place in places for n in (place.inner, place.outer, place.first)]
    return torch.tensor(rows, dtype=torch.int64, device=device)


def _module(path: Path) -> Any:
    name = f"zc_kernel_{path.stem}"
    if name not in sys.modules:
        found = importlib.util.spec_from_file_location(name, path)
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        sys.modules[name] = module
        found.loader.exec_module(module)
    return sys.modules[name]
