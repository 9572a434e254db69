"""Compiled regions as bytes, which another process loads without running Inductor.

The bytes are Inductor's own record of a compiled graph: the source that it has written, and what it
knows of inputs and outputs. Its kernels stay in Inductor's cache folder.
"""

import copy
import hashlib
import pickle
import platform
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import _guards, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from zc.errors import ExecutionError
from zc.torch_private.fakes import fake_mode_of
from zc.torch_private.kernel_files import loading_kernels, refuse_gone_kernels


def compiler_fingerprint(example_inputs: Sequence[Any]) -> str | None:
    """What compiled code depends on besides its graph, as a digest; ``None`` forbids to cache it.

    These are the sources of torch and Triton, Inductor's settings and what it reads of torch's,
    the processor, the number of threads, and the devices of ``example_inputs`` by index.
    """
    from torch._inductor import config
    from torch._inductor.codecache import FxGraphCache

    if config.force_disable_caches or not config.fx_graph_cache:
        return None
    mode = FakeTensorMode(shape_env=ShapeEnv())  # without one, Inductor caches nothing
    devices = dict.fromkeys(x.device for x in example_inputs if isinstance(x, torch.Tensor))
    with mode:
        examples = [torch.empty(1, device=device) for device in devices]
    nothing: Any = fx.GraphModule({}, fx.Graph())
    with _guards.tracing(_guards.TracingContext(mode)):
        found, _ = FxGraphCache.prepare_key(nothing, examples, {}, [], False)  # type: ignore
    return None if found is None else f"{found[0]} {_processor()}"


def _processor() -> str:
    kinds = (torch.cpu._is_vnni_supported(), torch.cpu._is_amx_tile_supported())
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {kinds}"


def region_bytes(compiled: Callable[..., Any]) -> bytes | None:
    """What ``load_region`` makes ``compiled`` of, a result of ``compile_region``.

    ``None`` where Inductor cannot write it down.
    """
    from torch._inductor.output_code import CompiledFxGraph

    code = getattr(compiled, "code", None)
    if not isinstance(code, CompiledFxGraph):
        return None
    record = copy.copy(code)
    record.prepare_for_serialization()
    record._fx_graph_cache_debug_lines = []
    record.source_code = loading_kernels(code.source_code, _scope(code.cache_key))
    record.cache_key = "c" + hashlib.sha256(record.source_code.encode()).hexdigest()
    try:
        return pickle.dumps(record)
    except Exception:  # whatever a constant of the graph raises
        return None


def _scope(cache_key: str) -> dict[str, Any]:
    """What running the source that Inductor has written under ``cache_key`` has defined."""
    from torch._inductor.codecache import PyCodeCache

    names = {module.__name__.rpartition(".")[2]: module for module in PyCodeCache.modules}
    return vars(names[cache_key]) if cache_key in names else {}


def load_region(data: bytes, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """The function that ``region_bytes`` was given, or one like it in another process.

    Raises:
        ExecutionError: where some of it is gone.
        whatever reading a broken record raises.
    """
    from torch._inductor.codecache import FxGraphCache
    from torch._inductor.output_code import CompiledFxGraphConstants

    constants = CompiledFxGraphConstants()
    context = _guards.TracingContext(fake_mode_of(example_inputs))
    with _guards.tracing(context), torch.no_grad():
        code: Any = pickle.loads(data)
        _refuse_other_libraries(code)
        refuse_gone_kernels(code.source_code)
        code, _ = FxGraphCache.cache_hit_post_compile(code, {}, constants)
        if code is None:
            raise ExecutionError("its source cannot be read")
        code.post_compile(list(example_inputs), constants, code.fx_kwargs)
    return calling(code)


def _refuse_other_libraries(code: Any) -> None:
    """Triton's libraries may change while its version stays."""
    key = getattr(code, "extern_libs_key", None)
    if key is None:
        return
    from torch.utils import _triton

    if _triton._extern_libs_key(_triton.triton_backend()) != key:
        raise ExecutionError("it was compiled with other libraries of Triton")


def calling(code: Any) -> Callable[..., Any]:
    """Inductor's compiled graph as a function that empties a list of inputs and returns a list."""

    def run(inputs: list[Any]) -> list[Any]:
        return list(code(inputs))

    run.code = code  # type: ignore[attr-defined]
    return run
