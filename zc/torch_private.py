"""Every use of private torch API, behind names of our own.

Nothing else in zc imports ``torch._dynamo``, ``torch._inductor``, ``torch._functorch``,
``torch._subclasses`` or ``torch.distributed._*``, except ``torch_private_frames``, which goes on
here. Each function has a test in ``tests/test_torch_private.py`` that names the torch versions it
was tried on.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch._dynamo
from torch import fx
from torch._dynamo import exc
from torch._dynamo.backends.common import aot_autograd
from torch._functorch import partitioners
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from zc.errors import CaptureError

SUPPORTED = ((2, 11), (2, 15))


def torch_version() -> tuple[int, int]:
    """Major and minor version of the installed torch."""
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


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


def compile_for_autograd(
    graph_module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    partition: Callable[..., tuple[fx.GraphModule, fx.GraphModule]],
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    whole: Callable[..., Any],
) -> Callable[..., Any]:
    """Lower a Dynamo graph to aten through AOTAutograd.

    ``partition`` receives the joint graph of a differentiable piece and returns its two halves,
    which ``forward`` and ``backward`` then compile; ``whole`` compiles a graph that needs no
    autograd outside (inference, or a step with ``backward()`` inside).
    """
    compiler = aot_autograd(
        fw_compiler=forward,
        bw_compiler=backward,
        inference_compiler=whole,
        partition_fn=partition,
        keep_inference_input_mutations=True,
    )
    try:
        return compiler(graph_module, example_inputs)
    except RuntimeError as error:
        if "does not support RNG ops in recompute regions" not in str(error):
            raise
        raise CaptureError(
            "torch cannot recompute dropout inside torch.utils.checkpoint when backward() is "
            "called in the compiled function; compile the model instead (level 1), or take the "
            "dropout or the checkpoint out"
        ) from error


def boxed(function: Callable[[list[Any]], Any]) -> Callable[..., Any]:
    """Mark ``function``, which takes one list of arguments and empties it, for AOTAutograd."""
    function._boxed_call = True  # type: ignore[attr-defined]
    return function


def split_joint(
    joint: fx.GraphModule,
    saved: list[fx.Node],
    saved_symbols: list[fx.Node],
    saved_opaque: list[fx.Node],
    forward_outputs: int,
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The forward and backward halves of a joint graph, in AOTAutograd's calling convention.

    ``saved``, ``saved_symbols`` and ``saved_opaque`` are the tensors, numbers and meshes that
    backward reads from forward. Every computed node must carry ``meta["partitioner_tag"]``, see
    ``tag_phase``.
    """
    return partitioners._extract_fwd_bwd_modules(
        joint, saved, saved_symbols, saved_opaque, num_fwd_outputs=forward_outputs
    )


def tag_phase(node: fx.Node, phase: str) -> None:
    """Tell ``split_joint`` that ``node`` belongs to ``phase``, forward or backward."""
    node.meta["partitioner_tag"] = f"must_be_in_{phase}"


def is_backward(node: fx.Node) -> bool:
    """Whether autograd made this captured node."""
    if node.meta.get("autograd_backward"):
        return True
    return node.meta.get("partitioner_tag") == "is_backward"


def must_recompute(node: fx.Node) -> bool:
    """Whether ``torch.utils.checkpoint`` in the user's code wants this node recomputed."""
    policy = node.meta.get("recompute")
    return policy is not None and policy.name in ("MUST_RECOMPUTE", "PREFER_RECOMPUTE")


def fake_mode_of(values: Sequence[Any]) -> FakeTensorMode:
    """The fake mode of the first fake tensor among ``values``; a new one if there is none."""
    for value in values:
        if isinstance(value, FakeTensor):
            return value.fake_mode
    return FakeTensorMode()


@contextmanager
def without_fake_tensor_logs() -> Iterator[None]:
    """Keep torch from logging a traceback for what becomes an error of ours."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def is_fake(value: Any) -> bool:
    """Whether ``value`` is a fake tensor."""
    return isinstance(value, FakeTensor)


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


def is_composite(op: str) -> bool:
    """Whether ``op``, as ``aten::square_``, consists of other ops and has no kernel of its own."""
    try:
        return torch._C._dispatch_has_kernel_for_dispatch_key(op, "CompositeImplicitAutograd")
    except RuntimeError:  # no such op
        return False


def source_expression(placeholder: fx.Node) -> str:
    """The expression a Dynamo placeholder was read from, as ``L['self']._modules['a']``; or ''."""
    argument = placeholder.meta.get("grapharg")
    source = getattr(argument, "source", None)
    if source is None:
        return ""
    name = source.name
    return str(name() if callable(name) else name)


def dynamo_input_index(placeholder: fx.Node) -> int | None:
    """Which argument of the Dynamo graph an AOTAutograd placeholder is, or is a part of."""
    inner = _innermost(placeholder.meta.get("desc"))
    return inner.idx if type(inner).__name__ == "PlainAOTInput" else None


def is_tangent(placeholder: fx.Node) -> bool:
    """Whether an AOTAutograd placeholder is the gradient of an output."""
    return type(_innermost(placeholder.meta.get("desc"))).__name__ == "TangentAOTInput"


def _innermost(description: Any) -> Any:
    """What a description of a tensor inside a tensor subclass is about."""
    while hasattr(description, "base"):
        description = description.base
    return description


def compile_region(
    graph_module: fx.GraphModule, example_inputs: Sequence[Any]
) -> Callable[..., Any]:
    """Compile a pure, functional aten graph with Inductor; its cache on disk is used and filled.

    Returns a function that takes the inputs in order and returns a list of the outputs.
    """
    from torch import _guards
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.proxy_tensor import make_fx

    mode = fake_mode_of(example_inputs)
    with mode, torch.no_grad():
        traced = make_fx(
            fx.Interpreter(graph_module).run,
            decomposition_table=select_decomp_table(),
            tracing_mode="real",
        )(*example_inputs)
    (output,) = traced.graph.find_nodes(op="output")  # regions rely on each other's strides
    output.meta["user_visible_output_idxs"] = list(range(len(output.args[0])))
    for i, node in enumerate(traced.graph.find_nodes(op="placeholder")):
        node.target = node.name = f"region_in{i}"  # Inductor's cache goes by code, not by strides
    traced.recompile()
    with _guards.tracing(_guards.TracingContext(mode)), torch.no_grad():
        compiled = compile_fx_inner(traced, list(example_inputs), is_inference=True)

    def run(*inputs: Any) -> list[Any]:
        return list(compiled(list(inputs)))

    return run


def inductor_counts() -> dict[str, int]:
    """Inductor's counts of regions compiled (``misses``) and loaded from its cache (``hits``)."""
    counts = torch._dynamo.utils.counters["inductor"]
    return {
        "hits": counts["fxgraph_cache_hit"],
        "misses": counts["fxgraph_cache_miss"] + counts["fxgraph_cache_bypass"],
    }


def cpp_compiler() -> str:
    """The C++ compiler that Inductor uses.

    Raises:
        torch._inductor.exc.InvalidCxxCompiler: when there is none.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler

    return get_cpp_compiler()


def has_cpp_compiler() -> bool:
    """Whether Inductor finds a working C++ compiler."""
    try:
        cpp_compiler()
    except Exception:  # Inductor raises one of several kinds, none of them public
        return False
    return True


def never_compile_alone(function: Callable[..., Any]) -> None:
    """Keep Dynamo from compiling ``function`` as a frame of its own; it is still inlined."""
    torch._dynamo.eval_frame.skip_code(function.__code__)


def is_compiled_wrapper(module: torch.nn.Module) -> bool:
    """Whether ``module`` is what ``torch.compile(model)`` returned."""
    return isinstance(module, torch._dynamo.OptimizedModule)


def in_backward() -> bool:
    """Whether autograd is running a backward pass on this thread."""
    return backward_number() != -1


def backward_number() -> int:
    """Which backward pass autograd is running on this thread; -1 for none."""
    return torch._C._current_graph_task_id()


def check_version() -> None:
    """Refuse a torch that zc was never tried on.

    Raises:
        CaptureError: naming the installed and the supported versions.
    """
    lowest, highest = SUPPORTED
    if not lowest <= torch_version() <= highest:
        raise CaptureError(
            f"torch {torch.__version__} is not supported; install torch "
            f"{lowest[0]}.{lowest[1]} to {highest[0]}.{highest[1]}"
        )


def code_being_compiled() -> Any:
    """The code object that Dynamo is compiling right now, or ``None``."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        root: Any = InstructionTranslator.current_tx().output.root_tx
        return root.f_code
    except AttributeError:
        return None


def default_store() -> Any:
    """The key-value store of the default process group."""
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_store()
