"""C++ kernels that Inductor has compiled, loaded by file: what calls them need not compile again.

before:  cpp_fused_0 = async_compile.cpp_pybinding(['const float*', 'float*'], r'''...C++...''')
after:   cpp_fused_0 = load_kernel('dq/cdq3...main.so')

Inductor's own line leads to the same file, by way of a run of the compiler's preprocessor.
"""

import ast
import re
from pathlib import Path
from typing import Any

from zc.errors import ExecutionError

_LOADS = re.compile(r"= load_kernel\('(.+)'\)$", re.MULTILINE)
_IMPORT = "from zc.torch_private.kernel_files import load_kernel; "


def inductor_folder() -> Path:
    """Where Inductor keeps what it has compiled; ``TORCHINDUCTOR_CACHE_DIR`` decides."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir())


def loading_kernels(source: str, scope: dict[str, Any]) -> str:
    """``source``, which Inductor has written, with its C++ kernels loaded by file.

    ``scope`` is what running it has defined. Lines keep their numbers. What is not as in the
    docstring above stays as it is.
    """
    lines = source.split("\n")
    for statement in ast.parse(source).body:
        name = _kernel_name(statement)
        path = _file_of(scope.get(name)) if name else None
        if path is None:
            continue
        first, last = statement.lineno - 1, statement.end_lineno or statement.lineno
        loads = f"{_IMPORT}{name} = load_kernel({str(path)!r})"
        lines[first:last] = [loads, *[""] * (last - first - 1)]
    return "\n".join(lines)


def refuse_gone_kernels(source: str) -> None:
    """Check that everything is there that ``source`` loads.

    Raises:
        ExecutionError: naming the first kernel that is not.
    """
    for name in _LOADS.findall(source):
        path = inductor_folder() / name
        if not path.exists():
            raise ExecutionError(f"its kernel {path} is gone")


def load_kernel(name: str) -> Any:
    """The function in the shared object ``name``, a path below Inductor's folder."""
    from torch._inductor.codecache import CppPythonBindingsCodeCache

    path = inductor_folder() / name
    library: Any = CppPythonBindingsCodeCache._load_library(str(path), path.name)
    return getattr(library, CppPythonBindingsCodeCache.entry_function)


def _kernel_name(statement: ast.stmt) -> str:
    """What ``statement`` calls the kernel that it compiles; empty for any other statement."""
    match statement:
        case ast.Assign(
            targets=[ast.Name(id=name)],
            value=ast.Call(func=ast.Attribute(value=ast.Name(id="async_compile"), attr=how)),
        ) if how == "cpp_pybinding":
            return name
    return ""


def _file_of(kernel: Any) -> Path | None:
    """The shared object of a loaded ``kernel``, below Inductor's folder."""
    file = getattr(getattr(kernel, "__self__", None), "__file__", None)  # its module's
    if file is None or not Path(file).is_relative_to(inductor_folder()):
        return None
    return Path(file).relative_to(inductor_folder()) if Path(file).exists() else None
