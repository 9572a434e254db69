"""Dynamo: its settings, what it traces, and where its graphs come from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch._dynamo
from torch import fx
from torch._dynamo import exc
from torch.utils._python_dispatch import _disable_current_modes


def configure_dynamo() -> None:
    """Let Dynamo trace recurrent modules; by default it leaves their whole frame to eager code.

    Unlike the settings of ``trace_again_if_needed`` this one cannot wait: where it is off, the
    frame is skipped before any backend sees it. It is set when ``backend="zero"`` is first looked
    up.
    """
    torch._dynamo.config.allow_rnn = True


class _TraceAgain(  # Dynamo forgets its graph breaks for the one base and lets the other pass
    exc.TensorifyScalarRestartAnalysis, exc.UnspecializeRestartAnalysis
):
    """Makes Dynamo trace the current frame again from its start."""


_ON_DEMAND = {
    "Unsupported Tensor.backward() call": "trace_autograd_ops",
    "using `torch.autograd.grad` with": "trace_autograd_ops",
}


_retracing: dict[str, Any] = {}  # settings that are on for now, and their values before


def trace_again_if_needed(graph_module: fx.GraphModule, external_graph: bool) -> None:
    """Trace the current frame again if it broke where Dynamo needs a setting that is off.

    The setting (``trace_autograd_ops``) is on for that one frame only, so functions compiled by
    other backends never see it. With ``external_graph``, when a
    differentiable input comes from outside the frame, ``backward()`` stays eager: Dynamo would
    trace it without that input's own graph, and with no leaf in the frame it would drop it.
    """
    reason = getattr(graph_module, "compile_subgraph_reason", None)
    text = reason.reason if reason is not None and reason.graph_break else ""
    wanted = {option for words, option in _ON_DEMAND.items() if words in text}
    if external_graph:
        wanted.discard("trace_autograd_ops")
    wanted -= _retracing.keys()
    if not wanted:
        return
    _turn_on(wanted)
    raise _TraceAgain(restart_reason=f"zc needs {', '.join(sorted(wanted))}")


def _turn_on(options: set[str]) -> None:
    """Set ``options`` of Dynamo until the compilation that is going on has ended."""
    if options and not _retracing:
        torch._dynamo.callback.on_compile_end(_compile_ended)
    for option in options:
        _retracing[option] = getattr(torch._dynamo.config, option)
        setattr(torch._dynamo.config, option, True)


def _compile_ended(_: Any) -> None:
    _restore_settings()
    callbacks = torch._dynamo.callback.callback_handler
    if _compile_ended in callbacks.end_callbacks:
        callbacks.remove_end_callback(_compile_ended)


def _restore_settings() -> None:
    for option, before in _retracing.items():
        setattr(torch._dynamo.config, option, before)
    _retracing.clear()


def trace_backward(package: str) -> bool:
    """Let Dynamo trace ``backward()`` in the frame it is tracing, if ``package`` compiles that.

    As ``trace_again_if_needed``, before the frame breaks; called while Dynamo traces it. Returns
    whether the backend of the frame is a function of ``package``.
    """
    from torch._dynamo.symbolic_convert import InstructionTranslator

    backend = _innermost_backend(InstructionTranslator.current_tx().output.compiler_fn)
    if str(getattr(backend, "__module__", "")).partition(".")[0] != package:
        return False
    _turn_on({"trace_autograd_ops"} - _retracing.keys())
    return True


def _innermost_backend(backend: Any) -> Any:
    """The function that a backend is, under torch's wrappers."""
    while True:
        inner = getattr(backend, "_torchdynamo_orig_backend", None)
        inner = inner or getattr(backend, "compiler_fn", None)
        if inner is None:
            return backend
        backend = inner


def backward_outside(graph_module: fx.GraphModule) -> bool:
    """Whether this frame broke because the loss it returns has lost its graph to ``backward()``."""
    reason = getattr(graph_module, "compile_subgraph_reason", None)
    return reason is not None and "consumed returned tensor" in reason.reason


def backward_under_default_device(graph_module: fx.GraphModule) -> bool:
    """Whether this frame broke because a default device, a mode, hid ``backward()`` from Dynamo."""
    reason = getattr(graph_module, "compile_subgraph_reason", None)
    if reason is None or "torch.autograd, qualname: backward," not in reason.reason:
        return False
    return any(frame.filename.endswith("torch/utils/_device.py") for frame in reason.user_stack)


@contextmanager
def outside_tracing() -> Iterator[None]:
    """Code runs as it would run eagerly meanwhile, though torch is compiling around us."""
    kept = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = False
    try:
        with _disable_current_modes():
            yield
    finally:
        torch.compiler._is_compiling_flag = kept


def source_expression(placeholder: fx.Node) -> str:
    """The expression a Dynamo placeholder was read from, as ``L['self']._modules['a']``; or ''."""
    argument = placeholder.meta.get("grapharg")
    source = getattr(argument, "source", None)
    if source is None:
        return ""
    name = source.name
    return str(name() if callable(name) else name)


def never_compile_alone(function: Callable[..., Any]) -> None:
    """Keep Dynamo from compiling ``function`` as a frame of its own; it is still inlined."""
    torch._dynamo.eval_frame.skip_code(function.__code__)


def is_compiled_wrapper(module: torch.nn.Module) -> bool:
    """Whether ``module`` is what ``torch.compile(model)`` returned."""
    return isinstance(module, torch._dynamo.OptimizedModule)


def code_being_compiled() -> Any:
    """The code object that Dynamo is compiling right now, or ``None``."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        root: Any = InstructionTranslator.current_tx().output.root_tx
        return root.f_code
    except AttributeError:
        return None
