"""Types: each node's stored type is what its op returns for its operands, aliasing included."""

from collections.abc import Collection, Hashable
from contextlib import nullcontext
from dataclasses import dataclass, field
from operator import getitem, is_
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import fx

from zc import torch_private
from zc.program.alike import Alike, Unlike
from zc.program.lines import Line, Lines, Reading
from zc.program.nodes import tensors_of, value_of
from zc.program.printer import print_type
from zc.program.program import Program
from zc.program.types import derive, has_unbacked, same_type
from zc.verify.diagnostic import refusal

_aten: Any = torch.ops.aten
# Real kernels of these refuse operands of different dtypes; fake ones do not.
_ONE_DTYPE = frozenset(
    op.default
    for op in (
        *(_aten.mm, _aten.bmm, _aten.addmm, _aten.baddbmm, _aten.mv, _aten.addmv, _aten.dot),
        *(_aten.convolution, _aten.convolution_backward),
    )
)


@dataclass
class Known:
    """What was found right under one fake mode: keys of nodes (``Alike.key``), and their types.

    A key holds all that a result follows from: the op, its arguments, the types of its operands and
    which of them share storage; and the result itself. It holds no node and no tensor.
    """

    types: dict[Any, int] = field(default_factory=dict)
    right: set[Hashable] = field(default_factory=set)


class Described(Alike):
    """Keys of nodes by their ``lines``, which keep what their types were described as."""

    def __init__(self, known: Known, lines: Lines) -> None:
        super().__init__(known.types)
        self._known, self._lines = known, lines

    def _value(self, node: fx.Node) -> Hashable:
        line = self._lines[node]
        if line.described[0] is not self._known:
            line.described = self._known, self._type(line.value)
        return line.described[1]

    def _storages(self, node: fx.Node) -> Collection[int]:
        keys = self._lines[node].keys
        return keys if len(keys) < 2 else super()._storages(node)

    def types(self, line: Line) -> tuple[Any, Hashable]:
        """What the types of ``line`` and its operands are described as, and for whom."""
        return self._known, tuple([self._value(node) for node in (line.node, *line.sources)])

    def anew(self, line: Line) -> bool:
        """Whether these types are described otherwise than when ``line`` was found right."""
        known, types = line.alike
        try:
            return known is not self._known or types != self.types(line)[1]
        except Unlike:
            return True


_known: WeakKeyDictionary[Any, Known] = WeakKeyDictionary()


def known_under(mode: Any) -> Known:
    """What is known of ops under fake mode ``mode``; nothing where there is no mode."""
    return Known() if mode is None else _known.setdefault(mode, Known())


def check(program: Program, reading: Reading, *, full: bool = True) -> None:
    """Refuse a node whose stored type is not the one its op returns.

    Where one node was found right, so are all that are alike (``zc.program.alike``), here and in
    later verifications under the same fake mode.

    Args:
        program: the program.
        reading: its lines, which remember that they were found right.
        full: describe every type anew, and look also at nodes whose type, or that of an operand,
            is described otherwise than when they were found right; otherwise only at those that
            changed since then, or whose operands did.

    Raises:
        VerifyError: naming the node, its stored type and the derived one.
    """
    known = known_under(program.fake_mode)
    for lines in reading.values():
        owners: dict[int, fx.Node] = {}
        described = Described(known, lines)
        if full:
            _forget(lines)
        for node, line in lines.items():
            if line.calls and (not _is_right(line, lines) or (full and described.anew(line))):
                key = described.key(node)
                _check_once(program, node, key, known.right)
                line.alike = (None, None) if key is None else described.types(line)
                _remember(line, lines)
            _own(program, line, owners)


def _forget(lines: Lines) -> None:
    """Let all types be described anew."""
    for line in lines.values():
        line.described = None, None


def _is_right(line: Line, lines: Lines) -> bool:
    """Whether ``line`` was found right, and its operands have the types that they had: objects."""
    right = line.right
    return right is not None and all(map(is_, right, [lines[s].value for s in line.sources]))


def _remember(line: Line, lines: Lines) -> None:
    """Note that ``line`` is right for the operands that it has, and which storages are its own."""
    line.right = tuple([lines[source].value for source in line.sources])
    shared = {key for source in line.sources for key in lines[source].keys}
    line.own = [key for key in line.keys if key not in shared]


def _check_once(program: Program, node: fx.Node, key: Hashable, right: set[Hashable]) -> None:
    """Check ``node``, unless one that is alike was found ``right``."""
    if key is not None and key in right:
        return
    _check_node(program, node)
    if key is not None:
        right.add(key)


def _check_node(program: Program, node: fx.Node) -> None:
    stored = value_of(node)
    for source in node.all_input_nodes:
        if "val" not in source.meta and source.op != "get_attr":
            raise _untyped(program, source)
    if "val" not in node.meta:
        raise _untyped(program, node)
    derived = (_item if node.target is getitem else _derive)(program, node)
    if derived is stored:  # an item, which others of a long list need not be looked at for
        return
    if node.target in _ONE_DTYPE:
        _check_one_dtype(program, node)
    if has_unbacked(stored):
        return
    if not same_type(stored, derived):
        raise refusal(
            program,
            node,
            f"type of %{node.name} is {_full_type(stored)}, its op returns "
            f"{_full_type(derived)} for these operands",
            "derive the type anew after changing an op or its operands (Editor.call, retype)",
        )
    _check_aliases(program, node, derived)


def _untyped(program: Program, node: fx.Node) -> Exception:
    return refusal(
        program,
        node,
        f"%{node.name} has no type",
        "insert nodes with Editor.call, which derives it",
    )


def _derive(program: Program, node: fx.Node) -> Any:
    shape_env = program.fake_mode.shape_env
    quiet = nullcontext() if shape_env is None else shape_env.ignore_fresh_unbacked_symbols()
    try:
        with quiet, torch_private.without_fake_tensor_logs():
            return derive(node, program.fake_mode)
    except Exception as error:
        reason = str(error).strip().split("\n")[0].removesuffix(".")
        raise refusal(
            program,
            node,
            f"the op of %{node.name} refuses its operands: {reason}",
            "give it operands of the types it takes",
        ) from error


def _check_one_dtype(program: Program, node: fx.Node) -> None:
    dtypes = {t.dtype: s for s in node.all_input_nodes for t in tensors_of(s)}
    if len(dtypes) > 1:
        operands = ", ".join(f"%{s.name} is {print_type(value_of(s))}" for s in dtypes.values())
        raise refusal(
            program,
            node,
            f"%{node.name} takes operands of one dtype: {operands}",
            "cast them to one dtype first",
        )


def _item(program: Program, node: fx.Node) -> Any:
    source, position = node.args
    try:
        return value_of(source)[position]  # type: ignore[index, arg-type]
    except (IndexError, TypeError) as error:
        raise refusal(
            program,
            node,
            f"%{node.name} takes item {position} of {print_type(value_of(source))}",  # type: ignore[arg-type]
            "read an item that its operand has",
        ) from error


def _check_aliases(program: Program, node: fx.Node, derived: Any) -> None:
    """The stored result shares storage with exactly those operands that the op's result does."""
    operands: dict[int, fx.Node] = {}
    for source in node.all_input_nodes:
        for tensor in tensors_of(source):
            operands.setdefault(_storage(tensor), source)
    for stored, fresh in zip(_tensors(value_of(node)), _tensors(derived), strict=True):
        has, should = operands.get(_storage(stored)), operands.get(_storage(fresh))
        if has is not should:
            raise refusal(
                program,
                node,
                f"%{node.name} shares {_storage_of(has)}, its op returns a value "
                f"that shares {_storage_of(should)}",
                "derive the type from the operands (Editor.call, retype); never copy meta",
            )


def _storage_of(node: fx.Node | None) -> str:
    return "no operand's storage" if node is None else f"the storage of %{node.name}"


def _own(program: Program, line: Line, owners: dict[int, fx.Node]) -> None:
    """A storage that comes from no operand belongs to no earlier value; inputs may share one."""
    for key in line.own:
        owner = owners.setdefault(key, line.node)
        if line.calls and owner is not line.node:
            raise refusal(
                program,
                line.node,
                f"%{line.node.name} shares the storage of %{owner.name}, which it does not read",
                "derive the type (Editor.call, retype); never copy meta",
            )


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors(value: Any) -> list[torch.Tensor]:
    items = value if isinstance(value, (tuple, list)) else [value]
    return [item for item in items if isinstance(item, torch.Tensor)]


def _full_type(value: Any) -> str:
    """The printed type, with strides and device where a tensor is not plain."""
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(map(_full_type, value)) + ")"
    if not isinstance(value, torch.Tensor):
        return print_type(value)
    text = print_type(value)
    if not value.is_contiguous():
        text += f" strided {list(value.stride())}"
    return text if value.device.type == "cpu" else f"{text} on {value.device}"
