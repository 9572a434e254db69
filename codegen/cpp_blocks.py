"""Operands kept in 8 bits, as C++: a chunk is one block, and codes are made when it is complete.

What is stored waits in an array on the stack; meanwhile the loop finds the element of largest
magnitude. Magnitudes are compared as the integers that their bits are, which any order of
comparisons gives the same result of.
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

_PRELUDE = """\
// Numbers in 8 bits, see zc.codegen.dynamic_map: an element is kept as the code of the number that
// is nearest to its quotient by the scale of its block.

static inline uint32_t order(float x) {  // by magnitude, of two alike the positive one last
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return (bits << 1) | ((bits >> 31) ^ 1);
}
static inline float in_order(uint32_t place) {  // the inverse
    const uint32_t bits = (place >> 1) | (((place & 1) ^ 1) << 31);
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
static inline uint32_t higher(uint32_t x, uint32_t y) { return x > y ? x : y; }
static inline float least(float x, float y) { return x < y ? x : y; }
static inline float most(float x, float y) { return x > y ? x : y; }
"""
_MAP = """\
static inline float {name}_number(uint8_t code) {{
    const int place = {place_of_code};
    const float i = {i};
    float x = 0;
{magnitude}
    x = least(x, 1.0f);
    return {number};
}}
static inline int {name}_code(float number) {{
    const float x = least(std::fabs(number), 1.0f);
    float at = {first};
{place}
    int i = int(at);
    i -= int((i & (i {neighbour} 1)) == 0) & int(at - float(i) < {edge});  // a decade begins
    i += int(x >= {last});
    return {code};
}}
static void {name}_codes(const float *kept, float scale, uint8_t *codes, int64_t size) {{
    const float factor = std::fabs(scale) >= {smallest} ? 1.0f / scale : 0.0f;
    for (int64_t k = 0; k < size; ++k)
        codes[k] = uint8_t({name}_code(kept[k] * factor));
}}
"""


def prelude(spec: KernelSpec) -> list[str]:
    """The maps that the kernel needs, and what finds a number in them."""
    if not spec.codes:
        return []
    return [_PRELUDE, *map(_map, sorted({operand.signed for operand in spec.codes}))]


def before(spec: KernelSpec) -> list[str]:
    """What stands before the loop over a block."""
    found = []
    for operand in spec.codes:
        if operand.reads:
            scale = f"{operand.scales}_[begin / {operand.block}]"
            found.append(f"    const float {operand.name}_scale = {scale};")
        if operand.writes:
            found.append(f"    float kept_{operand.name}[{operand.block}];")
            found.append(f"    uint32_t top_{operand.name} = 0;")
    return found


def load(operand: Codes) -> str:
    """The number of element ``i``."""
    name = operand.name
    return f"        const real {name} = {_name(operand.signed)}_number({name}_[i]) * {name}_scale;"


def store(operand: Codes, value: str) -> list[str]:
    """Keep ``value`` until the block is complete."""
    name = operand.name
    return [
        f"        kept_{name}[i - begin] = float({value});",
        f"        top_{name} = higher(top_{name}, order(kept_{name}[i - begin]));",
    ]


def after(spec: KernelSpec) -> list[str]:
    """What stands behind the loop over a block."""
    found = []
    for operand in spec.codes:
        if operand.writes:
            name, kind = operand.name, _name(operand.signed)
            scale = f"{operand.scales}_[begin / {operand.block}]"
            found.append(f"    {scale} = in_order(top_{name});")
            found.append(f"    {kind}_codes(kept_{name}, {scale}, {name}_ + begin, end - begin);")
    return found


def _map(signed: bool) -> str:
    first, *rest = [line_text(line, "x", "f") for line in place_lines(signed)]
    numbers = [line_text(line, "i", "f") for line in magnitude_lines(signed)]
    return _MAP.format(
        name=_name(signed),
        place_of_code=f"int(code) - {MIDDLE}" if signed else "code",
        i="float(place < 0 ? -place : place)" if signed else "float(place)",
        magnitude="\n".join(f"    x = most(x, {line});" for line in numbers),
        number="place < 0 ? -x : x" if signed else "x",
        first=first,
        place="\n".join(f"    at = least(at, {line});" for line in rest),
        neighbour="-" if signed else "+",
        edge=literal(EDGE, "f"),
        last=literal(last_threshold(signed), "f"),
        code=f"{MIDDLE} + (number < 0 ? -(i < {MIDDLE} ? i : {MIDDLE}) : i)" if signed else "i",
        smallest=literal(SMALLEST, "f"),
    )


def _name(signed: bool) -> str:
    return "signed" if signed else "unsigned"
