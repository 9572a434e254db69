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
    SCALARS,
    Codes,
    KernelSpec,
    Number,
    Operand,
    Scales,
    Statement,
)
from zc.codegen.table import TABLE
from zc.program.edit import Editor
from zc.program.liveness import storages_of
from zc.program.nodes import input_of, value_of
from zc.program.number_text import number_text
from zc.program.printer import print_target
from zc.program.program import Program
from zc.program.quantized import DEQUANTIZE, QUANTIZE
from zc.program.rounding import ROUND_STOCHASTIC, kernel_arguments
from zc.program.stamps import BACKWARD, UPDATE, stamp_of
from zc.program.updates import is_number

aten: Any = torch.ops.aten
_FORMATS = {"memory_format", "pin_memory", "dtype"}  # of a result that is never stored


@dataclass
class Element:
    """What happens to one element of one parameter, and the nodes it stands for."""

    name: str
    writes: list[fx.Node]
    changing: set[int]  # storages that the program writes to
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


def element_of(program: Program, writes: list[fx.Node], changing: set[int]) -> Element | None:
    """The arithmetic behind ``writes``; ``None`` where a value cannot be read by a kernel."""
    element = Element(_optimizer_of(program, stamp_of(writes[0]).param), writes, changing)
    for write in writes:
        target: Any = write.args[0]
        if write.target is QUANTIZE:
            _enter_codes(element, target, write.args[2:], writes=True)
            continue
        name = _operand_name(target, element)
        element.operands[target] = Operand(name, _dtype_of(target), reads=False, writes=True)
    for write in writes:
        if not _express(program, write.args[1], element):  # type: ignore[arg-type]
            return None
    for write in writes:
        if write.args[1] in element.operands:  # stored as it was read
            _name_copy(element, write.args[1])
    alike = all(place == element.places[0] for place in element.places)
    return element if alike and _has_kernel(element) and element.body else None


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
        sources = _tensor_sources(node, element.like)
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


def _tensor_sources(node: fx.Node, like: torch.Tensor) -> list[fx.Node] | None:
    """The tensors that ``node`` computes with element by element; ``None`` if it is a leaf.

    So is what is computed in fp32 beside values in fp64: the kernel would not round it.
    """
    operation = TABLE.get(_op_of(node)) if node.op == "call_function" else None
    shape = like.shape
    if operation is None or value_of(node).shape != shape:
        return None
    kind = value_of(node).dtype
    if like.dtype == torch.float64 and kind.is_floating_point and kind != like.dtype:
        return None
    if not kind.is_floating_point and _op_of(node) in ("aten._to_copy", "aten.clone"):
        return None  # to whole numbers: a kernel computes with real ones
    if any(name not in (*operation.names, *_FORMATS) for name in node.kwargs):
        return None
    found = []
    plain = node.args[:4] if node.target is ROUND_STOCHASTIC else node.args
    for argument in (*plain, *(node.kwargs[k] for k in node.kwargs if k not in _FORMATS)):
        if isinstance(argument, fx.Node) and _number_behind(argument) is None:
            if value_of(argument).shape != shape and not _is_scalar(argument, node):
                return None
            found.append(argument)
        elif not isinstance(argument, (fx.Node, int, float)):
            return None
    return found if stamp_of(node).phase == UPDATE or _conditions(node, found, shape) else None


def _conditions(node: fx.Node, sources: list[fx.Node], shape: Any) -> bool:
    """Whether a node before the update (clipping, a cast) has one tensor and serves the update.

    A cast counts where it loses nothing: the kernel computes in the wider type.
    """
    tensors = [source for source in sources if value_of(source).shape == shape]
    users = list(node.users)
    while len(users) == 1 and stamp_of(users[0]).phase != UPDATE:
        users = list(users[0].users)
    inside = bool(users) and all(stamp_of(user).phase == UPDATE for user in users)
    wider = all(value_of(node).dtype.itemsize >= value_of(t).dtype.itemsize for t in tensors)
    return len(tensors) == 1 and inside and wider


def _is_scalar(node: fx.Node, reader: fx.Node) -> bool:
    """A tensor of one element that a kernel can read: it lies where the others do."""
    value = value_of(node)
    wanted = value_of(reader).device
    return value.dim() == 0 and value.device == wanted and _dtype_of(node) in SCALARS


def _op_of(node: fx.Node) -> str:
    """The op as the table calls it; a clamp with one bound is that of the bound."""
    name = print_target(node.target)
    return "aten.clamp_min" if name == "aten.clamp" and len(node.args) == 2 else name


def _number_behind(node: fx.Node) -> Any:
    """The number that a node is, or that it made a 0-d tensor of; ``None`` for other tensors."""
    if is_number(value_of(node)):
        return node
    return node.args[0] if node.target is aten.scalar_tensor.default else None


def _enter_operand(program: Program, node: fx.Node, element: Element) -> bool:
    """A value that the kernel reads from memory, where needed through a copy."""
    value, like = value_of(node), element.like
    if not isinstance(value, torch.Tensor) or not like.is_contiguous():
        return False
    if node.target is DEQUANTIZE and value.shape == like.shape:
        codes: Any = node.args[0]
        element.values[node] = _enter_codes(element, codes, node.args[1:4], reads=True)
        return True
    scalar = value.dim() == 0 and like.dim() > 0
    if not scalar and value.shape != like.shape:
        return False
    source = node if _stays(node, element) else _copied(program, node)
    known = element.operands.get(source)
    name = known.name if known is not None else _operand_name(node, element)
    writes = known is not None and known.writes
    read = Operand(name, _dtype_of(node), reads=True, writes=writes, scalar=scalar)
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


def _stays(node: fx.Node, element: Element) -> bool:
    """Whether ``node`` is contiguous and has its value until the launch, behind other writes."""
    if not value_of(node).is_contiguous():
        return False
    own = node in element.operands or value_of(node).dim() > 0
    return own or not storages_of(node).keys() & element.changing


def _copied(program: Program, node: fx.Node) -> fx.Node:
    """A contiguous copy, made before ``node`` is read for the first time."""
    edit = Editor(program, program.graph, made_by="lower_update")
    first = min(user for user in node.users if user.op == "call_function")
    with edit.before(first, phase=UPDATE, param=stamp_of(first).param):
        return edit.call(aten.clone.default, node, memory_format=torch.contiguous_format)


def _enter_statement(program: Program, node: fx.Node, element: Element) -> None:
    operation = TABLE[_op_of(node)]
    given = dict(zip(operation.names, node.args, strict=False))
    given |= {k: v for k, v in node.kwargs.items() if k not in _FORMATS}
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
    element.body.append(Statement(name, _op_of(node), arguments))
    element.values[node] = name


def _argument(program: Program, value: Any, element: Element) -> str:
    number = _number_behind(value) if isinstance(value, fx.Node) else value
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


def _dtype_of(node: fx.Node) -> str:
    return str(value_of(node).dtype).removeprefix("torch.")


def _optimizer_of(program: Program, param: str) -> str:
    for update in program.updates:
        if any(param in kind.names() for kind in update.classes):
            return update.optimizer.replace("-", "_")
    return "update"
