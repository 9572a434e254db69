"""What one element of a tensor goes through in an update: the input of every renderer."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

from zc.codegen.rounding import ROUND
from zc.codegen.table import TABLE

DTYPES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}  # bytes of one element
SCALARS = (*DTYPES, "bool")


@dataclass(frozen=True)
class Operand:
    """One list of tensors that a kernel goes through, element by element.

    ``reads`` and ``writes`` say what it does with them. A ``scalar`` has one element, which is
    read once and holds for all elements of its row: the factor that clips gradients.
    """

    name: str
    dtype: str
    reads: bool = True
    writes: bool = False
    scalar: bool = False

    @property
    def bytes(self) -> float:
        """Bytes in memory for each element that the kernel goes through; none for a scalar."""
        return 0 if self.scalar else DTYPES[self.dtype]


@dataclass(frozen=True)
class Codes(Operand):
    """An operand kept in 8 bits, see ``zc.codegen.blockwise``: the kernel computes with numbers.

    ``dtype`` is ``uint8``. The scales, one for each ``block`` elements, are the operand ``scales``;
    codes and scales are read together and written together. ``signed`` tells the map.
    """

    block: int = 256
    signed: bool = True

    @property
    def scales(self) -> str:
        """Name of the operand that has the scales."""
        return f"{self.name}_scales"

    @property
    def bytes(self) -> float:
        """One."""
        return 1


@dataclass(frozen=True)
class Scales(Operand):
    """The scales of codes, one number for each ``block`` elements."""

    block: int = 256

    @property
    def bytes(self) -> float:
        """A part of one number."""
        return DTYPES[self.dtype] / self.block


@dataclass(frozen=True)
class Number:
    """A number that is the same for all elements; ``meaning`` says where it comes from."""

    name: str
    meaning: str


@dataclass(frozen=True)
class Statement:
    """``name = op(arguments)``; arguments are names of values and numbers, or constants."""

    name: str
    op: str
    arguments: tuple[tuple[str, str], ...]

    def text(self, constant: str = "{}") -> str:
        """The right-hand side, in the syntax that all targets share.

        ``constant`` is how a target writes a literal, for example ``real({})``.
        """
        given = {n: constant.format(a) if is_literal(a) else a for n, a in self.arguments}
        return TABLE[self.op].render(given)


def is_literal(text: str) -> bool:
    """Whether ``text`` is a number and no name."""
    try:
        float(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class KernelSpec:
    """One kernel.

    Attributes:
        name: for example ``adamw``.
        operands: the tensors, those written first, scalars last.
        numbers: its arguments.
        body: what happens to one element, in order.
        stores: which value goes into which operand.
    """

    name: str
    operands: tuple[Operand, ...]
    numbers: tuple[Number, ...]
    body: tuple[Statement, ...]
    stores: tuple[tuple[str, str], ...]

    @cached_property
    def digest(self) -> str:
        """Identifies the kernel by what it computes."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]

    @property
    def compute_dtype(self) -> str:
        """Arithmetic is in fp32, in fp64 where a tensor is."""
        wide = any(o.dtype == "float64" and not o.scalar for o in self.operands)
        return "float64" if wide else "float32"

    @property
    def placed(self) -> bool:
        """Whether it asks where an element lies in the whole tensor (``zc.codegen.rounding``)."""
        return any(statement.op == ROUND for statement in self.body)

    def bytes_per_element(self) -> tuple[float, float]:
        """Bytes read and bytes written for each element."""
        read = sum(o.bytes for o in self.operands if o.reads)
        written = sum(o.bytes for o in self.operands if o.writes)
        return read, written

    @property
    def values(self) -> list[Operand]:
        """The operands that have a value for each element: all but scales."""
        return [o for o in self.operands if not isinstance(o, Scales)]

    @property
    def codes(self) -> list[Codes]:
        """The operands that are kept in 8 bits."""
        return [o for o in self.operands if isinstance(o, Codes)]

    @property
    def block(self) -> int | None:
        """Elements that share a scale; ``None`` where no operand has scales."""
        return next((o.block for o in self.codes), None)
