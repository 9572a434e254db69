"""What zc relies on in Dynamo's frames; each test names the versions it was tried on."""

import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo

from zc import torch_private

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def compiled(function: Callable[..., Any], call: Callable[..., Any] | None) -> Any:
    """``function``, in which ``arrange()`` replaces the frame that is being traced."""
    found: list[Any] = []

    @torch.compiler.assume_constant_result
    def arrange() -> None:
        found.append(torch_private.compiled_for())
        torch_private.replace_frame(call)

    result = torch.compile(function(arrange), backend="eager")
    return result, found


def adding(arrange: Any) -> Any:
    def add(x: Any, *more: Any, scale: float = 1.0, **rest: Any) -> Any:
        if torch.compiler.is_compiling():
            arrange()
        return x + 1

    return add


def test_a_frame_calls_something_else():
    """Tried on 2.13."""
    add, _ = compiled(adding, lambda *values: values)
    x = torch.ones(2)
    assert add(x)[0] is x
    values = add(x, 2, scale=3.0, flag=True)
    assert values[1:4] == (3.0, (2,), {"flag": True})
    assert "arrange" in values[4].__name__  # a variable of the closure


def test_one_replacement_serves_all_calls():
    """Tried on 2.13: no guard is left on shapes or numbers."""
    compiles: list[Any] = []
    torch._dynamo.callback.on_compile_start(compiles.append)
    try:
        add, _ = compiled(adding, torch.compiler.disable(lambda *values: len(values[0])))
        assert [add(torch.ones(n), scale=float(n)) for n in range(1, 6)] == [1, 2, 3, 4, 5]
    finally:
        torch._dynamo.callback.callback_handler.remove_start_callback(compiles.append)
    assert len(compiles) == 1


def test_a_frame_runs_as_it_is_written():
    """Tried on 2.13."""
    seen: list[bool] = []

    def looking(arrange: Any) -> Any:
        def look(x: torch.Tensor) -> torch.Tensor:
            if torch.compiler.is_compiling():
                arrange()
            seen.append(torch.compiler.is_compiling())
            return x + 1

        return look

    look, _ = compiled(looking, None)
    assert torch.equal(look(torch.ones(2)), torch.full((2,), 2.0))
    assert seen == [False]


def test_a_frame_without_tensor_work_is_replaced_too():
    """Tried on 2.13, and the setting that it takes is put back."""
    assert not torch._dynamo.config.allow_empty_graphs

    def nothing(arrange: Any) -> Any:
        def run(x: torch.Tensor) -> None:
            if torch.compiler.is_compiling():
                arrange()

        return run

    run, _ = compiled(nothing, lambda *values: "replaced")
    assert run(torch.ones(2)) == "replaced"
    assert not torch._dynamo.config.allow_empty_graphs


def test_other_frames_are_left_alone():
    """Tried on 2.13: hooks do not outlive the compilation that they were made in."""
    compiled(adding, lambda *values: None)[0](torch.ones(1))
    assert torch._dynamo.convert_frame._bytecode_hooks == {}


def test_compiled_for():
    """Tried on 2.13: while Dynamo traces, and in code that it leaves alone."""
    assert torch_private.compiled_for() == ("", {})
    add, found = compiled(adding, None)
    add(torch.ones(1))
    found_at_run: list[Any] = []

    def look() -> None:
        found_at_run.append(torch_private.compiled_for())

    torch_private.never_compile_alone(look)

    def calling(x: torch.Tensor) -> torch.Tensor:
        look()
        return x + 1

    torch.compile(calling, backend="eager")(torch.ones(1))
    assert found[0] == ("eager", {})
    assert ("eager", {}) in found_at_run


@pytest.mark.parametrize("package", ["zc", "other"])
@pytest.mark.parametrize("external", [False, True])
def test_configure_dynamo_for_backward(package: str, external: bool):
    """Tried on 2.13: on for frames of zc, but where a backward leads outside; off behind them."""
    ops: list[str] = []

    def backend(module: Any, _: Any) -> Any:
        ops.extend(getattr(n.target, "__name__", "") for n in module.graph.nodes)
        return module.forward

    backend.__module__ = f"{package}.backend"
    torch_private.configure_dynamo()
    torch_private.configure_dynamo()
    weight = torch.ones(3, requires_grad=True)

    def step(weight: torch.Tensor) -> None:
        weight.square().sum().backward()

    torch.compile(step, backend=backend)(weight * 2 if external else weight)
    assert weight.grad is not None
    assert weight.grad.tolist() == [8 if external else 2] * 3
    assert ("grad" in ops) == (package == "zc" and not external)
    assert not torch._dynamo.config.trace_autograd_ops


def test_what_dynamo_had_set_before_stays():
    """Tried on 2.13: and the setting can be written to Dynamo's logs."""
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        torch_private.configure_dynamo()
        setting = torch._dynamo.config.trace_autograd_ops
        assert setting
        assert json.dumps([setting]) == "[1]"
        assert pickle.loads(pickle.dumps(setting)) == 1
