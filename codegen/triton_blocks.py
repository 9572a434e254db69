"""Operands kept in 8 bits, as Triton: a program takes whole blocks and finds the scale of each.

Scales have one address for each element, that of its block; the first element of a block stores
the new one. Every read of a scale comes before: the new one depends on all elements of its block.
"""

from zc.codegen.blockwise import SMALLEST
from zc.codegen.dynamic_map import (
    EDGE,
    MIDDLE,
    last_threshold,
    line_text,
    literal,
    magnitude_lines,
    place_lines,
)
from zc.codegen.spec import Codes, KernelSpec

_PRELUDE = '''
# Numbers in 8 bits, see zc.codegen.dynamic_map: an element is kept as the code of the number that
# is nearest to its quotient by the scale of its block.


@triton.jit
def scale_of_block(x, inside, BLOCK: tl.constexpr, SHARED: tl.constexpr):
    """For each element, the one of largest magnitude among the SHARED of its block."""
    bits = tl.where(inside, x, 0.0).to(tl.uint32, bitcast=True)
    order = (bits << 1) | ((bits >> 31) ^ 1)  # by magnitude, of two alike the positive one last
    last = tl.max(tl.reshape(order, (BLOCK // SHARED, SHARED)), axis=1, keep_dims=True)
    last = tl.reshape(tl.broadcast_to(last, (BLOCK // SHARED, SHARED)), (BLOCK,))
    return ((last >> 1) | (((last & 1) ^ 1) << 31)).to(tl.float32, bitcast=True)


@triton.jit
def quotient(x, scale):
    normal = tl.abs(scale) >= {smallest}
    return x * tl.where(normal, tl.div_rn(1.0, tl.where(normal, scale, 1.0)), 0.0)
'''
_MAP = """

@triton.jit
def {name}_number(code):
    place = code.to(tl.int32){minus}
    i = tl.abs(place).to(tl.float32)
    x = tl.full(i.shape, 0.0, tl.float32)
{magnitude}
    x = tl.minimum(x, 1.0)
    return {number}


@triton.jit
def {name}_code(number):
    x = tl.where(tl.abs(number) < 1.0, tl.abs(number), 1.0)
    at = {first}
{place}
    i = at.to(tl.int32)
    i -= (((i & (i {neighbour} 1)) == 0) & (at - i.to(tl.float32) < {edge})).to(tl.int32)
    i += (x >= {last}).to(tl.int32)
    return ({code}).to(tl.uint8)
"""


def prelude(spec: KernelSpec) -> str:
    """The functions that the kernel needs of the maps."""
    if not spec.codes:
        return ""
    maps = map(_map, sorted({operand.signed for operand in spec.codes}))
    return _PRELUDE.format(smallest=literal(SMALLEST)) + "".join(maps)


def arguments(spec: KernelSpec) -> list[str]:
    """Further arguments of the function that works on a block."""
    return ["first_of_block", "BLOCK"] if spec.codes else []


def parameters(spec: KernelSpec) -> list[str]:
    """These as they are declared."""
    return ["first_of_block", "BLOCK: tl.constexpr"] if spec.codes else []


def grid_lines(spec: KernelSpec) -> list[str]:
    """What a program computes of its place before it calls that function."""
    return [f"    first_of_block = offset % {spec.block} == 0"] if spec.codes else []


def load(operand: Codes) -> list[str]:
    """The number of each element."""
    name = operand.name
    number = f"{_name(operand.signed)}_number(tl.load({name}_at, mask=inside, other=0))"
    return [
        f"    {name} = {number}",
        f"    {name} *= tl.load({operand.scales}_at, mask=inside, other=0)",
    ]


def store(operand: Codes, value: str) -> list[str]:
    """Codes and scales of ``value``."""
    name, block = operand.name, operand.block
    code = f"{_name(operand.signed)}_code(quotient({value}.to(tl.float32), {name}_scale))"
    return [
        f"    {name}_scale = scale_of_block({value}.to(tl.float32), inside, BLOCK, {block})",
        f"    tl.store({operand.scales}_at, {name}_scale, mask=inside & first_of_block)",
        f"    tl.store({name}_at, {code}, mask=inside)",
    ]


def _map(signed: bool) -> str:
    first, *rest = [line_text(line, "x") for line in place_lines(signed)]
    numbers = [line_text(line, "i") for line in magnitude_lines(signed)]
    negative = f"-tl.minimum(i, {MIDDLE})"
    return _MAP.format(
        name=_name(signed),
        minus=f" - {MIDDLE}" if signed else "",
        magnitude="\n".join(f"    x = tl.maximum(x, {line})" for line in numbers),
        number="tl.where(place < 0, -x, x)" if signed else "x",
        first=first,
        place="\n".join(f"    at = tl.minimum(at, {line})" for line in rest),
        neighbour="-" if signed else "+",
        edge=EDGE,
        last=literal(last_threshold(signed)),
        code=f"{MIDDLE} + tl.where(number < 0, {negative}, i)" if signed else "i",
    )


def _name(signed: bool) -> str:
    return "signed" if signed else "unsigned"
