"""Target ``cpu``: the kernel as C++, compiled once for each content, run over chunks in parallel.

The whole update is one pass over memory: each element is read once and written once. Every thread
takes an equal part of all elements, however many tensors they lie in, and goes through it in order;
one chunk's worth is left to one thread, which is sooner done than another is woken.
"""

import ctypes
import subprocess
import tempfile
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from zc.codegen import cpp_blocks, rounding
from zc.codegen.host_lock import locked
from zc.codegen.rounding import Place
from zc.codegen.source import source_of
from zc.codegen.spec import Codes, KernelSpec, Operand
from zc.codegen.torch_target import Run

CHUNK_ELEMENTS = 1 << 15
_TYPES = {"float32": "float", "float64": "double", "bfloat16": "bf16", "float16": "_Float16",
          "bool": "bool", "uint8": "uint8_t"}  # fmt: skip
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fopenmp",
          "-fno-math-errno", "-fno-trapping-math", "-freciprocal-math")  # fmt: skip
_PRELUDE = """\
#include <cmath>
#include <cstdint>
#include <cstring>
#include <omp.h>

namespace zc {{  // functions of these names exist outside

using real = {real};

struct bf16 {{
    uint16_t bits;
    operator float() const {{
        uint32_t wide = uint32_t(bits) << 16;
        float value;
        std::memcpy(&value, &wide, 4);
        return value;
    }}
    bf16 &operator=(float value) {{  // to nearest, ties to even
        uint32_t wide;
        std::memcpy(&wide, &value, 4);
        bits = value != value ? 0x7fc0 : uint16_t((wide + 0x7fff + ((wide >> 16) & 1)) >> 16);
        return *this;
    }}
}};

static inline real sqrt(real x) {{ return std::sqrt(x); }}
static inline real rsqrt(real x) {{ return real(1) / std::sqrt(x); }}
static inline real reciprocal(real x) {{ return real(1) / x; }}
static inline real abs(real x) {{ return std::fabs(x); }}
static inline real sigmoid(real x) {{ return real(1) / (real(1) + std::exp(-x)); }}
static inline real maximum(real x, real y) {{ return x > y || x != x ? x : y; }}
static inline real minimum(real x, real y) {{ return x < y || x != x ? x : y; }}
static inline real sign(real x) {{ return real((x > 0) - (x < 0)); }}
static inline real where(bool c, real x, real y) {{ return c ? x : y; }}
static inline real lerp(real x, real y, real w) {{
    return w < real(0.5) ? x + w * (y - x) : y - (y - x) * (real(1) - w);
}}
using std::ceil; using std::cos; using std::erf; using std::exp; using std::floor;
using std::log; using std::log2; using std::pow; using std::sin; using std::tanh;
"""


def render_cpp(spec: KernelSpec) -> str:
    """C++ source: ``update`` runs over a list of tensors, ``chunk`` over a part of one."""
    real, constant = _TYPES[spec.compute_dtype], "real({})"
    pointers = ", ".join(f"{_pointer(o)} __restrict {o.name}_" for o in spec.operands)
    numbers = ", ".join(f"real {n.name}" for n in spec.numbers)
    arguments = ", ".join(filter(None, (pointers, numbers)))
    prelude = _PRELUDE.format(real=real) + (rounding.CPP if spec.placed else "")
    lines = [f"// {spec.name}: {_summary(spec)}", prelude]
    lines += cpp_blocks.prelude(spec)
    lines += [f"// {n.name} = {n.meaning}" for n in spec.numbers]
    first = "uint64_t first, " if spec.placed else ""
    lines += [f"static void chunk(int64_t begin, int64_t end, {first}{arguments}) {{"]
    for o in (o for o in spec.operands if o.scalar):
        lines.append(
            f"    const {'bool' if o.dtype == 'bool' else 'real'} {o.name} = {o.name}_[0];"
        )
    lines += cpp_blocks.before(spec)
    lines += ["    for (int64_t i = begin; i < end; ++i) {"]
    lines += ["        const uint64_t counter = first + i;"] if spec.placed else []
    lines += [_load(o) for o in spec.values if o.reads and not o.scalar]
    lines += [f"        const auto {s.name} = {s.text(constant)};" for s in spec.body]
    lines += [line for place, value in spec.stores for line in _store(spec, place, value)]
    lines += ["    }", *cpp_blocks.after(spec), "}", "", _entry(spec)]
    return "\n".join(lines)


def _load(operand: Operand) -> str:
    if isinstance(operand, Codes):
        return cpp_blocks.load(operand)
    return f"        const real {operand.name} = {operand.name}_[i];"


def _store(spec: KernelSpec, place: str, value: str) -> list[str]:
    codes = next((o for o in spec.codes if o.name == place), None)
    return cpp_blocks.store(codes, value) if codes else [f"        {place}_[i] = {value};"]


def load_cpp(spec: KernelSpec, compiler: str = "g++") -> Run:
    """Compile with ``compiler``, or load what was compiled before, and return the function.

    Raises:
        RuntimeError: with the compiler's words, when the source does not compile.
    """
    function = ctypes.CDLL(str(_library(source_of(spec, "cpp", render_cpp(spec)), compiler))).update
    function.restype = None

    def run(
        operands: Sequence[Sequence[torch.Tensor]],
        numbers: Sequence[float],
        places: Sequence[Place] = (),
    ) -> None:
        sizes = array("q", [tensor.numel() for tensor in operands[0]])
        pointers = array("q", [t.data_ptr() for tensors in operands for t in tensors])
        given = array("d", numbers)
        threads = ctypes.c_int(torch.get_num_threads())
        lists = [sizes, pointers, given]
        if spec.placed:
            lists.append(array("q", [n for p in places for n in (p.inner, p.outer, p.first)]))
        function(ctypes.c_int64(len(sizes)), *map(_address, lists), threads)

    return run


def _address(values: "array[Any]") -> ctypes.c_void_p:
    return ctypes.c_void_p(values.buffer_info()[0])


def _pointer(operand: Operand) -> str:
    return f"{'' if operand.writes else 'const '}{_TYPES[operand.dtype]} *"


def _summary(spec: KernelSpec) -> str:
    read, written = spec.bytes_per_element()
    return f"reads {read} and writes {written} bytes for each element"


def _entry(spec: KernelSpec) -> str:
    pointers = [f"({_pointer(o)})pointers[{i} * count + t]" for i, o in enumerate(spec.operands)]
    numbers = [f"real(numbers[{i}])" for i in range(len(spec.numbers))]
    indent, places = " " * 26, ""
    if spec.placed:
        indent, places = " " * 30, "const place *places, "
    arguments = f",\n{indent}".join([*pointers, *numbers])
    return f"""\
// pointers: {len(spec.operands)} lists of count tensors, one list for each operand
extern "C" void update(int64_t count, const int64_t *sizes, const int64_t *pointers,
                       const double *numbers, {places}int threads) {{
    const int64_t step = {spec.block or CHUNK_ELEMENTS};
    int64_t total = 0;
    for (int64_t t = 0; t < count; ++t) total += sizes[t];
    #pragma omp parallel num_threads(threads) if (total > {CHUNK_ELEMENTS})
    {{
        // a thread takes the chunks that begin in its part of all elements
        const int64_t mine = omp_get_thread_num(), all = omp_get_num_threads();
        const int64_t low = total * mine / all, high = total * (mine + 1) / all;
        int64_t before = 0;
        for (int64_t t = 0; t < count && before < high; before += sizes[t++]) {{
            int64_t begin = low > before ? (low - before + step - 1) / step * step : 0;
            for (; begin < sizes[t] && before + begin < high; begin += step) {{
                const int64_t end = begin + step < sizes[t] ? begin + step : sizes[t];
{_call(spec, arguments)}
            }}
        }}
    }}
}}

}}  // namespace zc
"""


def _call(spec: KernelSpec, arguments: str) -> str:
    """The call for one chunk; where elements are numbered, for each of its rows."""
    if not spec.placed:
        return f"                chunk(begin, end, {arguments});"
    return f"""\
                const place at = places[t];
                for (int64_t from = begin, to; from < end; from = to) {{
                    const int64_t row = from / at.inner, behind = (row + 1) * at.inner;
                    to = behind < end ? behind : end;
                    chunk(from, to, at.first + row * (at.outer - at.inner),
                          {arguments});
                }}"""


def _library(source: Path, compiler: str) -> Path:
    """The shared object beside ``source``, compiled by one process of this host.

    It is written under another name first, so never in part.
    """
    library = source.with_suffix(".so")
    if _is_newer(library, source):
        return library
    with locked(source.with_suffix(".lock")):
        if not _is_newer(library, source):  # the last holder may have compiled it
            _compile(source, library, compiler)
    return library


def _is_newer(library: Path, source: Path) -> bool:
    return library.exists() and library.stat().st_mtime >= source.stat().st_mtime


def _compile(source: Path, library: Path, compiler: str) -> None:
    with tempfile.NamedTemporaryFile(dir=source.parent, suffix=".so", delete=False) as file:
        temporary = Path(file.name)
    command = [compiler, *_FLAGS, str(source), "-o", str(temporary)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        temporary.unlink()
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr}")
    temporary.replace(library)
