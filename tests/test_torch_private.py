"""What zc relies on in torch's private interfaces; each test names the versions it was tried on."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.distributed as dist
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from zc import torch_private

aten: Any = torch.ops.aten
ROUNDING = 1e-6  # Inductor's sine and sum are not ATen's
Backend = Callable[[fx.GraphModule, list[Any]], Any]
pytestmark = pytest.mark.usefixtures("fresh_compiler")


def test_torch_version():
    """Tried on 2.13."""
    major, minor = torch_private.torch_version()
    assert torch.__version__.startswith(f"{major}.{minor}")


def test_check_version():
    """Tried on 2.13; the refusal is in test_backend.py."""
    torch_private.check_version()


def test_fake_mode_of():
    """Tried on 2.13."""
    mode = torch_private.fake_mode_of([])
    with mode:
        fake = torch.empty(2)
    assert torch_private.fake_mode_of([1, torch.ones(1), fake]) is mode
    assert torch_private.fake_mode_of([torch.ones(1)]) is not mode


def test_is_fake():
    """Tried on 2.13."""
    with torch_private.fake_mode_of([]):
        fake = torch.empty(2)
    assert torch_private.is_fake(fake)
    assert not torch_private.is_fake(torch.empty(2))


def test_fake_empty():
    """Tried on torch 2.13."""
    mode = torch_private.fake_mode_of([])
    for size in ((), (5,), (2, 3, 4), (0, 3), (3, 0, 2)):
        for device in (torch.device("cpu"), torch.device("meta")):
            made = torch_private.fake_empty(mode, size, torch.bfloat16, device)
            with mode:
                expected = torch.empty(size, dtype=torch.bfloat16, device=device)
            for value in (made, expected):
                assert torch_private.is_fake(value)
                assert (tuple(value.shape), value.dtype, value.device) == (
                    size,
                    torch.bfloat16,
                    device,
                )
            assert made.stride() == expected.stride()
            assert made.untyped_storage().nbytes() == expected.untyped_storage().nbytes()
            assert made.requires_grad == expected.requires_grad


def test_fake_strided():
    """Tried on 2.13: what ops return is made without running them."""
    mode = torch_private.fake_mode_of([])
    plain: Any = (4, 2), (1, 4), torch.bfloat16, torch.device("cpu")
    made = torch_private.fake_strided(mode, *plain)
    assert torch_private.is_fake(made)
    assert (made.shape, made.stride(), made.dtype, made.device) == plain
    row = torch_private.fake_strided(mode, (2,), (4,), *plain[2:], within=(made, 3))
    with mode:
        assert row.storage_offset() == made[3].storage_offset() == 3
        assert row.stride() == made[3].stride()
    assert row.untyped_storage()._cdata == made.untyped_storage()._cdata


def test_known_value():
    """Tried on 2.13: torch remembers the value of a tensor made from a number."""
    with torch_private.fake_mode_of([]):
        constant = torch.ops.aten.lift_fresh_copy(torch.tensor(2.0))
        other = torch.empty(2)
    assert torch_private.known_value(constant) is not None
    assert torch_private.known_value(other) is None


def test_has_symbols():
    """Tried on 2.13."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    dynamic = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC, DimDynamic.STATIC])
    value = mode.from_tensor(torch.empty(3, 4), symbolic_context=dynamic)
    assert torch_private.has_symbols(value)
    assert not torch_private.has_symbols(mode.from_tensor(torch.empty(3, 4), static_shapes=True))
    with mode:
        assert torch_private.has_symbols(torch.empty(9)[value.shape[0] :][:2])


def test_without_fake_tensor_logs(caplog: pytest.LogCaptureFixture):
    """Tried on 2.13."""
    with torch_private.fake_mode_of([]):
        one, other = torch.empty(2), torch.empty(3)
    with torch_private.without_fake_tensor_logs(), pytest.raises(RuntimeError):
        torch.add(one, other)
    assert caplog.records == []


@torch.compiler.assume_constant_result
def _traces_backward(package: str) -> bool:
    return torch_private.trace_backward(package)


@pytest.mark.parametrize("package", ["zc", "test_torch_private"])
def test_trace_backward(package: str):
    """Tried on 2.13: the setting holds for the frame that asks, where its backend is known."""
    ops: list[str] = []

    def backend(module: fx.GraphModule, inputs: list[Any]) -> Any:
        ops.extend(getattr(n.target, "__name__", "") for n in module.graph.nodes)
        return module

    backend.__module__ = f"{package}.backend"
    weight = nn.Parameter(torch.ones(3))

    @torch.compile(backend=backend)
    def step(x: torch.Tensor) -> None:
        assert _traces_backward("zc") == (package == "zc")
        (x * weight).sum().backward()

    step(torch.ones(3))
    assert torch.equal(weight.grad, torch.ones(3))
    assert ("grad" in ops) == (package == "zc")
    assert not torch._dynamo.config.trace_autograd_ops


def test_cpp_compiler():
    """Tried on 2.13."""
    assert "++" in torch_private.cpp_compiler()


def test_is_composite():
    """Tried on 2.13."""
    assert torch_private.is_composite("aten::square_")
    assert not torch_private.is_composite("aten::add_.Tensor")
    assert not torch_private.is_composite("aten::no_such_op")


def test_outside_tracing():
    """Tried on 2.13: a backend runs inside a fake mode, with torch.compiler.is_compiling() true."""
    seen: list[tuple[bool, float]] = []

    def backend(module: fx.GraphModule, _: Any) -> Any:
        with FakeTensorMode(), torch_private.outside_tracing():
            seen.append((torch.compiler.is_compiling(), torch.ones(2).sum().item()))
        return module.forward

    torch.compile(lambda x: x.sin(), backend=backend)(torch.ones(2))
    assert seen == [(False, 2.0)]


def sums(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (x.sin() + 1).t(), x.sum()


def compiled_sums() -> Callable[..., Any]:
    """``sums`` compiled for [2, 3], in a fake mode with symbols, as Dynamo's is."""
    with FakeTensorMode(shape_env=ShapeEnv()):
        example = torch.empty(2, 3)
        module = make_fx(sums)(example)
    return torch_private.compile_region(module, [example])


def test_compile_region():
    """Tried on 2.13: a fake-typed aten graph, called with a list, returns another; strides kept."""
    x = torch.randn(2, 3)
    inputs = [x]
    result = compiled_sums()(inputs)
    assert inputs == []
    assert isinstance(result, list)
    for found, expected in zip(result, sums(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=ROUNDING, atol=ROUNDING)
        assert found.stride() == expected.stride()


def test_inductor_counts():
    """Tried on 2.13: a region compiled again is loaded."""
    before = torch_private.inductor_counts()
    compiled_sums()
    compiled_sums()
    after = torch_private.inductor_counts()
    assert sum(after.values()) - sum(before.values()) == 2
    assert after["hits"] > before["hits"]


def test_has_cpp_compiler(monkeypatch: pytest.MonkeyPatch):
    """Tried on 2.13."""
    from torch._inductor import cpp_builder

    def none() -> str:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", lambda: "g++")
    assert torch_private.has_cpp_compiler()
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    assert not torch_private.has_cpp_compiler()


def test_is_compiled_wrapper():
    """Tried on 2.13."""
    model = nn.Linear(2, 2)
    assert torch_private.is_compiled_wrapper(torch.compile(model))  # type: ignore[arg-type]
    assert not torch_private.is_compiled_wrapper(model)


def test_in_backward():
    """Tried on 2.13."""
    seen: list[bool] = []
    x = torch.ones(2, requires_grad=True)
    y = x * 2
    y.register_hook(lambda _: seen.append(torch_private.in_backward()))
    assert not torch_private.in_backward()
    y.sum().backward()
    assert seen == [True]
    assert not torch_private.in_backward()


def test_backward_number():
    """Tried on 2.13: no two backward passes have the same."""
    seen: list[int] = []
    x = torch.ones(2, requires_grad=True)
    for _ in range(2):
        y = x * 2
        y.register_hook(lambda _: seen.append(torch_private.backward_number()))
        y.sum().backward()
    assert len({-1, *seen}) == 3
    assert torch_private.backward_number() == -1


def test_default_store():
    """Tried on 2.13: one store for all ranks of the default group."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        torch_private.default_store().set("zc/test", "value")
        assert torch_private.default_store().get("zc/test") == b"value"
    finally:
        dist.destroy_process_group()


PUBLIC = [name for name in torch_private.__all__ if inspect.isfunction(vars(torch_private)[name])]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_function_is_tested(name: str):
    files = Path(__file__).parent.glob("test_torch_private*.py")
    assert any(f"torch_private.{name}(" in file.read_text("utf-8") for file in files)


def test_nothing_else_imports_private_interfaces():
    adapter = Path(torch_private.__file__).parent
    root = adapter.parent
    private = ("torch._d", "torch._f", "torch._i", "torch._s", "torch.distributed._")
    for path in [*root.rglob("*.py"), *root.parent.joinpath("passes").glob("*.py")]:
        lines = map(str.lstrip, path.read_text(encoding="utf-8").splitlines())
        imports = [line for line in lines if line.startswith(("import ", "from "))]
        if path.parent != adapter:
            assert not [line for line in imports if any(p in line for p in private)], path
