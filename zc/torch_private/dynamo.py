"""Dynamo: its settings, what it traces, and where its graphs come from."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch._dynamo
from torch import fx
from torch._dynamo import exc
from torch.utils._python_dispatch import _disable_current_modes

_PACKAGE = __name__.partition(".")[0]


def configure_dynamo() -> None:
    """Let Dynamo trace recurrent modules, and ``backward()`` in frames that zc compiles.

    By default it leaves the whole frame of a recurrent module to eager code, and one that begins
    with a call of a function which calls ``backward()``, or does so in a loop, breaks there: all
    that is before any backend sees a graph. It is set when ``backend="zero"`` is first looked up.
    """
    torch._dynamo.config.allow_rnn = True
    present = torch._dynamo.config.trace_autograd_ops
    if not isinstance(present, _ForZero):
        torch._dynamo.config.trace_autograd_ops = _ForZero(bool(present))
    _watch_clock()


class _ForZero(int):  # a number, so that Dynamo can write its settings to logs
    """A setting of Dynamo that is on while it traces a frame for zc, elsewhere as it was before.

    Dynamo asks when it meets ``backward()``. As in ``trace_again_if_needed``, a differentiable
    input from outside the frame keeps it off.
    """

    def __bool__(self) -> bool:
        return int(self) != 0 or (_is_traced_for(_PACKAGE) and not _external_graph())


def _external_graph() -> bool:
    """Whether the frame being traced has read a result of differentiable code outside of it."""
    read = output_being_traced().placeholders
    found = (node.meta.get("example_value") for node in read)
    return any(isinstance(t, torch.Tensor) and t.requires_grad and not t.is_leaf for t in found)


_started: list[float] = []  # when Dynamo began to trace, or its time was last asked for


def seconds_in_dynamo() -> float:
    """Seconds since Dynamo began with this frame, or since this was last asked; 0 if unknown."""
    _watch_clock()
    before, now = _started[:], time.perf_counter()
    _started[:] = [now]
    return now - before[0] if before else 0.0


def _watch_clock() -> None:
    """Be told when Dynamo begins and ends; ``torch._dynamo.reset`` forgets who wants to be."""
    if _clock_started in torch._dynamo.callback.callback_handler.start_callbacks:
        return
    _started.clear()
    torch._dynamo.callback.on_compile_start(_clock_started)
    torch._dynamo.callback.on_compile_end(_clock_ended)


@torch.compiler.disable  # Dynamo holds a lock here, which compiling this function would want too
def _clock_started(_: Any) -> None:
    _started[:] = [time.perf_counter()]


@torch.compiler.disable
def _clock_ended(_: Any) -> None:
    _started.clear()


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

    So it is where ``configure_dynamo`` does not reach: for a backend that calls zc and is none of
    its functions, and in other threads, which have settings of their own. The setting
    (``trace_autograd_ops``) is on for that one frame only, so functions compiled by other backends
    never see it. With ``external_graph``, when a differentiable input comes from outside the frame,
    ``backward()`` stays eager: Dynamo would trace it without that input's own graph, and with no
    leaf in the frame it would drop it.
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
    if not _is_traced_for(package):
        return False
    _turn_on({"trace_autograd_ops"} - _retracing.keys())
    return True


def _is_traced_for(package: str) -> bool:
    """Whether Dynamo is tracing a frame whose backend is a function of ``package``."""
    output = output_being_traced()
    backend = None if output is None else _innermost_backend(output.compiler_fn)
    return str(getattr(backend, "__module__", "")).partition(".")[0] == package


def output_being_traced() -> Any:
    """The graph that Dynamo is tracing, with what belongs to it; ``None`` outside of tracing."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        return InstructionTranslator.current_tx().output
    except AttributeError:
        return None


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
    output = output_being_traced()
    return None if output is None else output.root_tx.f_code
