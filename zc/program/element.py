"""What one element of a parameter goes through in its update: from nodes to a kernel's statements.

    %t: f32[16] = aten.mul.Tensor(%w_grad, %clip)      t0 = grad * factor
    %w_add: f32[16] = aten.add.Tensor(%w, %t, ...)     new_param = param + c0 * t0
    aten.copy_(%w, %w_add)                             stored in param

Followed back from the writes: what the table of operations has becomes a statement, numbers of the
host become arguments, tensors of one element scalars; everything else is read from memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from zc.codegen.spec import (
    DTYPES,
    Codes,
    KernelSpec,
    Number,
    Operand,
    Scales,
    Statement,
)
from zc.codegen.table import TABLE
from zc.program.edit import erase_dead
from zc.program.kernel_reads import (
    FORMATS,
    Changes,
    changes_behind,
    dtype_of,
    number_behind,
    op_of,
    read_as,
    tensor_sources,
)
from zc.program.nodes import input_of, value_of
from zc.program.number_text import number_text
from zc.program.program import Program
from zc.program.quantized import DEQUANTIZE, QUANTIZE
from zc.program.rounding import ROUND_STOCHASTIC, kernel_arguments
from zc.program.stamps import BACKWARD, stamp_of

aten: Any = torch.ops.aten


@dataclass
class Element:
    """What happens to one element of one parameter, and the nodes it stands for."""

    name: str
    writes: list[fx.Node]
    changing: Changes
    operands: dict[fx.Node, Operand] = field(default_factory=dict)
    numbers: dict[fx.Node, Number] = field(default_factory=dict)
    body: list[Statement] = field(default_factory=list)
    values: dict[fx.Node, str] = field(default_factory=dict)
    places: list[tuple[Sequence[int], str]] = field(default_factory=list)  # with axes

    def spec(self) -> KernelSpec:
        """The kernel: operands that are written come first."""
        stores = [(self.operands[w.args[0]].name, self.values[w.args[1]]) for w in self.writes]  # type: ignore[index]
        operands = tuple(self.ordered().values())
        numbers = tuple(self.numbers.values())
        return KernelSpec(self.name, operands, numbers, tuple(self.body), tuple(stores))

    def ordered(self) -> dict[fx.Node, Operand]:
        """The operands, written ones first, scalars last."""
        return dict(
            sorted(self.operands.items(), key=lambda item: (not item[1].writes, item[1].scalar))
        )

    @property
    def like(self) -> Any:
        """The type of what is written first, which all operands have the shape of."""
        return value_of(self.writes[0].args[0])  # type: ignore[arg-type]

    def key(self) -> Any:
        """Equal for elements that one launch can take together."""
        device = value_of(next(iter(self.operands))).device
        axes = {axis for _, axis in self.places}
        return self.spec(), tuple(self.numbers), device, *axes


def element_of(program: Program, writes: list[fx.Node], changing: Changes) -> Element | None:
    """The arithmetic behind ``writes``; ``None`` where a value cannot be read by a kernel.

    What they write to is contiguous. ``changing`` has all that writes to memory up to the launch.
    """
    element = Element(_optimizer_of(program, stamp_of(writes[0]).param), writes, changing)
    for write in writes:
        target: Any = write.args[0]
        if write.target is QUANTIZE:
            _enter_codes(element, target, write.args[2:], writes=True)
            continue
        name = _operand_name(target, element)
        element.operands[target] = Operand(name, dtype_of(target), reads=False, writes=True)
    if _enter(program, element):
        return element
    erase_dead(program.graph, [*element.operands])  # copies made for it
    return None


def _enter(program: Program, element: Element) -> bool:
    """Enter what all writes store; ``False`` where no kernel can."""
    for write in element.writes:
        if not _express(program, write.args[1], element):  # type: ignore[arg-type]
            return False
    for write in element.writes:
        if write.args[1] in element.operands:  # stored as it was read
            _name_copy(element, write.args[1])
    alike = all(place == element.places[0] for place in element.places)
    return alike and _has_kernel(element) and bool(element.body)


def _has_kernel(element: Element) -> bool:
    """Whether targets know the dtypes of all tensors, and blocks of one size where there are."""
    tensors = [operand for operand in element.operands.values() if not operand.scalar]
    codes = [operand for operand in tensors if isinstance(operand, Codes)]
    plain = [operand for operand in tensors if operand not in codes]
    return all(o.dtype in DTYPES for o in plain) and len({o.block for o in codes}) <= 1


def _express(program: Program, root: fx.Node, element: Element) -> bool:
    """Enter what ``root`` is computed from, without recursion; ``False`` where that fails."""
    pending = [root]
    while pending:
        node = pending[-1]
        if node in element.values:
            pending.pop()
            continue
        sources = tensor_sources(node, element.like)
        if sources is None:
            pending.pop()
            if not _enter_operand(program, node, element):
                return False
            continue
        missing = [s for s in sources if s not in element.values]
        if missing:
            pending += missing
            continue
        pending.pop()
        _enter_statement(program, node, element)
    return True


def _enter_operand(program: Program, node: fx.Node, element: Element) -> bool:
    """A value that the kernel reads from memory, where needed through a copy."""
    value, like = value_of(node), element.like
    if not isinstance(value, torch.Tensor):
        return False
    if node.target is DEQUANTIZE and value.shape == like.shape:
        codes: Any = node.args[0]
        scales: Any = node.args[1]
        changed = changes_behind(node, [codes, scales], element.changing)
        if codes in element.operands or not changed:
            element.values[node] = _enter_codes(element, codes, node.args[1:4], reads=True)
            return True
    scalar = value.dim() == 0 and like.dim() > 0
    if not scalar and value.shape != like.shape:
        return False
    own = node in element.operands and value.is_contiguous()  # read before it is written
    source = node if own else read_as(program, node, like, element.changing)
    known = element.operands.get(source)
    name = known.name if known is not None else _operand_name(node, element)
    writes = known is not None and known.writes
    read = Operand(name, dtype_of(node), reads=True, writes=writes, scalar=scalar)
    element.operands[source] = read
    element.values[node] = name
    return True


def _enter_codes(
    element: Element, codes: fx.Node, arguments: Any, reads: bool = False, writes: bool = False
) -> str:
    """Codes and scales that the kernel reads or writes, or both; returns what it calls them."""
    scales, block, signed = arguments
    known = element.operands.get(codes)
    name = known.name if known is not None else _operand_name(codes, element)
    if known is not None:
        reads, writes = reads or known.reads, writes or known.writes
    pair = Codes(name, "uint8", reads, writes, block=block, signed=signed)
    element.operands[codes] = pair
    element.operands[scales] = Scales(pair.scales, "float32", reads, writes, block=block)
    return name


def _enter_statement(program: Program, node: fx.Node, element: Element) -> None:
    operation = TABLE[op_of(node)]
    given = dict(zip(operation.names, node.args, strict=False))
    given |= {k: v for k, v in node.kwargs.items() if k not in FORMATS}
    arguments = tuple((n, _argument(program, v, element)) for n, v in given.items())
    if node.target is ROUND_STOCHASTIC:
        arguments = (*arguments[:2], *zip(("2", "3"), kernel_arguments(node), strict=True))
        element.places.append(node.args[4:])  # type: ignore[arg-type]
    stored = [w for w in element.writes if w.args[1] is node]
    if node.target is aten._to_copy.default and not stored:  # all arithmetic is in one dtype
        element.values[node] = arguments[0][1]
        return
    target: Any = stored[0].args[0] if stored else None
    name = f"new_{element.operands[target].name}" if stored else f"t{len(element.body)}"
    element.body.append(Statement(name, op_of(node), arguments))
    element.values[node] = name


def _argument(program: Program, value: Any, element: Element) -> str:
    number = number_behind(value, element.like) if isinstance(value, fx.Node) else value
    if number is None:
        return element.values[value]
    if not isinstance(number, fx.Node):
        return repr(number)
    if number not in element.numbers:
        name = f"c{len(element.numbers)}"
        element.numbers[number] = Number(name, number_text(number))
    return element.numbers[number].name


def _name_copy(element: Element, source: Any) -> None:
    """A state that becomes a copy of what is read (the previous gradient)."""
    name = f"t{len(element.body)}"
    element.body.append(Statement(name, "aten.clone", (("0", element.values[source]),)))
    element.values[source] = name


def _operand_name(node: fx.Node, element: Element) -> str:
    name = "value"
    if node.op == "placeholder":
        info = input_of(node)
        names = {"param": "param", "grad": "grad"}
        name = names.get(info.kind) or info.subject.partition("[")[0].rpartition(".")[2]
    elif value_of(node).shape != element.like.shape:
        name = "skip" if value_of(node).dtype == torch.bool else "factor"
    elif stamp_of(node).phase == BACKWARD:
        name = "grad"
    taken = {operand.name for operand in element.operands.values()}
    return name if name not in taken else f"{name}_{len(taken)}"


def _optimizer_of(program: Program, param: str) -> str:
    for update in program.updates:
        if any(param in kind.updated for kind in update.classes):
            return update.optimizer.replace("-", "_")
    return "update"
