"""What zc relies on to keep compiled regions in files, and to know where compiling spends its time.

Each test names the versions it was tried on.
"""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from zc import torch_private
from zc.errors import ExecutionError
from zc.torch_private.kernel_files import loading_kernels

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def sums(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (x.sin() + 1).t(), x.sum()


def compiled_sums() -> tuple[Any, list[torch.Tensor]]:
    with FakeTensorMode(shape_env=ShapeEnv()):
        example = torch.empty(2, 3)
        module = make_fx(sums)(example)
    return torch_private.compile_region(module, [example]), [example]


def test_inductor_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Tried on 2.13."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    assert torch_private.inductor_folder() == tmp_path


def test_compiler_fingerprint():
    """Tried on 2.13: the same again, another one for another setting, none without caches."""
    with FakeTensorMode():
        example = torch.empty(2)
    first = torch_private.compiler_fingerprint([example])
    assert first is not None
    assert torch_private.compiler_fingerprint([example, example]) == first
    with inductor.patch(epilogue_fusion=False):
        assert torch_private.compiler_fingerprint([example]) != first
    with inductor.patch(fx_graph_cache=False):
        assert torch_private.compiler_fingerprint([example]) is None
    with inductor.patch(post_grad_custom_post_pass=lambda graph: None):
        assert torch_private.compiler_fingerprint([example]) is None


def test_region_bytes_and_load_region():
    """Tried on 2.13: strides are kept, and no kernel is compiled on the way."""
    compiled, examples = compiled_sums()
    data = torch_private.region_bytes(compiled)
    assert data is not None
    assert b"load_kernel" in data
    assert b"cpp_pybinding" not in data
    loaded = torch_private.load_region(data, examples)
    x = torch.randn(2, 3)
    for found, expected in zip(loaded([x]), compiled([x]), strict=True):
        assert torch.equal(found, expected)
        assert found.stride() == expected.stride()


def test_region_bytes_of_what_inductor_left_alone():
    """Tried on 2.13: a graph without computation is not compiled."""
    with FakeTensorMode(shape_env=ShapeEnv()):
        x = torch.empty(2)
    graph = fx.Graph()
    graph.output((graph.placeholder("x"),))
    compiled = torch_private.compile_region(fx.GraphModule({}, graph), [x])
    assert torch_private.region_bytes(compiled) is None


def test_load_region_without_its_source(monkeypatch: pytest.MonkeyPatch):
    """Tried on 2.13: Inductor swallows the error of reading it."""

    def unreadable(*_: Any, **__: Any) -> None:
        raise OSError

    compiled, examples = compiled_sums()
    data = torch_private.region_bytes(compiled)
    assert data is not None
    monkeypatch.setattr("torch._inductor.codecache._reload_python_module", unreadable)
    with pytest.raises(ExecutionError) as error:
        torch_private.load_region(data, examples)
    assert str(error.value) == "its source cannot be read"


def test_load_region_with_other_libraries(monkeypatch: pytest.MonkeyPatch):
    """Tried on 2.13: what Triton links against is part of the record."""
    compiled, examples = compiled_sums()
    monkeypatch.setattr(compiled.code, "extern_libs_key", "ours")
    data = torch_private.region_bytes(compiled)
    assert data is not None
    monkeypatch.setattr("torch.utils._triton.triton_backend", lambda: None)
    monkeypatch.setattr("torch.utils._triton._extern_libs_key", lambda _: "theirs")
    with pytest.raises(ExecutionError) as error:
        torch_private.load_region(data, examples)
    assert str(error.value) == "it was compiled with other libraries of Triton"


def test_other_source_stays_as_it_is():
    source = "a = async_compile.triton('a', '''...''')\nb = async_compile.cpp_pybinding([], '')\n"
    assert loading_kernels(source, {"b": print}) == source


def test_kernel_seconds():
    """Tried on 2.13."""
    compiled_sums()
    before = torch_private.kernel_seconds()
    compiled, examples = compiled_sums()
    torch_private.load_region(torch_private.region_bytes(compiled) or b"", examples)
    assert torch_private.kernel_seconds() > before > 0


def test_seconds_in_dynamo():
    """Tried on 2.13: from the start of tracing to the backend; none outside, none after a reset."""
    found: list[float] = []

    def backend(module: fx.GraphModule, _: Any) -> Any:
        found.append(torch_private.seconds_in_dynamo())
        return module

    def traced(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    torch._dynamo.reset()
    torch_private.configure_dynamo()
    start = time.perf_counter()
    torch.compile(traced, backend=backend)(torch.ones(2))
    assert 0 < found[0] <= time.perf_counter() - start
    torch._dynamo.reset()
    torch.compile(traced, backend=backend)(torch.ones(2))
    assert found[1] == 0
