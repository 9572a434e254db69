"""``optimizer.step`` by itself as a generated program, for training at level 1.

    optimizer.step = torch.compile(optimizer.step, backend="zero")
    optimizer.step = zc.compile_step(optimizer)                         # the same, without Dynamo

Dynamo breaks the step of torch's optimizers into pieces, and leaves others alone, before a backend
sees anything. But it traces the hooks around a step first, in the frame that ends with calling it:
from such a hook, zc puts its program in the place of that frame.
"""

import functools
import inspect
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from zc import torch_private
from zc.lowered_step import LoweredStep
from zc.options import Settings, read_options
from zc.state.optimizers import check_optimizer

_TORCH = torch.__file__.removesuffix("__init__.py")
_TAKEN = "_zc_step_taken"  # on an optimizer while a step runs that zc has taken over
_PROGRAMS = "_zc_programs"
_warned: set[type] = set()


def compile_step(optimizer: Optimizer, options: dict[str, Any] | None = None) -> Callable[..., Any]:
    """``optimizer.step`` as a program: the optimizer is traced, sharded and lowered to kernels.

        optimizer.step = zc.compile_step(optimizer)

    What ``torch.compile(optimizer.step, backend="zero")`` gives, without Dynamo, which costs time
    at the first call and fails on some classes. Gradients are left as they are; a parameter without
    one is left alone. Learning rates and other numbers of the groups, further groups, loaded state
    are seen at the next call; ``optimizer.state`` and ``state_dict()`` stay as usual, and hooks
    around the step are called. With a closure the optimizer's own step runs, uncompiled.

    Args:
        optimizer: of any class, on parameters of ``zc.shard`` or plain ones.
        options: as those of the ``zero`` backend.

    Returns:
        A method of ``optimizer``, to call in place of ``optimizer.step`` or to be put there, which
        ``torch.amp.GradScaler`` needs since it calls ``optimizer.step``.

    Raises:
        PipelineError: for options that cannot be read.
        ShardError: for an optimizer that was built before ``zc.shard``.
        CaptureError: at the first call, for a step that cannot be traced.
    """
    check_optimizer(optimizer)
    step: Any = _step(type(optimizer), read_options(options))
    if hasattr(optimizer.step, "_wrapped_by_lr_sched"):  # a scheduler is there and looks for this
        step._wrapped_by_lr_sched = True
    return types.MethodType(step, optimizer)


def watch_steps() -> None:
    """Take over optimizer steps that are compiled with ``backend="zero"``, or say once why not."""
    torch_private.never_compile_alone(_after_step)
    register_optimizer_step_pre_hook(_before_step)
    register_optimizer_step_post_hook(_after_step)


def _step(kind: type[Optimizer], settings: Settings) -> Callable[..., Any]:
    """What takes the place of ``kind.step``."""
    call, mine = inspect.signature(kind.step), object()

    @Optimizer.profile_hook_step
    def program(optimizer: Optimizer) -> None:
        vars(optimizer)[_TAKEN] = True
        optimizer._opt_called = True  # type: ignore[attr-defined]  # what LRScheduler checks
        programs = vars(optimizer).setdefault(_PROGRAMS, {})
        if mine not in programs:
            programs[mine] = LoweredStep(optimizer, settings)
        programs[mine]()

    @torch.compiler.disable
    @functools.wraps(kind.step)
    def step(optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        if _is_plain(call.bind(optimizer, *args, **kwargs)):
            return program(optimizer)
        return kind.step(optimizer, *args, **kwargs)

    return step


def _is_plain(given: inspect.BoundArguments) -> bool:
    """Whether a step is called without a closure or anything else."""
    given.apply_defaults()
    for parameter in list(given.signature.parameters.values())[1:]:
        value = given.arguments[parameter.name]
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if value if variadic else value is not parameter.default:
            return False
    return True


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if torch.compiler.is_compiling():
        _take_over(optimizer)


@torch.compiler.assume_constant_result
def _take_over(optimizer: Optimizer) -> None:
    """Replace the frame that Dynamo is tracing, where it is the step or torch's code around it."""
    backend, options = torch_private.compiled_for()
    if backend != "zero":
        return
    own: Any = type(optimizer).step
    code = torch_private.code_being_compiled()
    if code is own.__code__:
        torch_private.replace_frame(_hooked_step(read_options(options)))
    elif code.co_filename.startswith(_TORCH):  # a scheduler's wrapper: the step has its own frame
        torch_private.replace_frame(None)


def _hooked_step(settings: Settings) -> Callable[..., Any]:
    """What all frames of ``Optimizer.profile_hook_step`` call; ``func`` is the step in them."""
    steps: dict[type[Optimizer], Callable[..., Any]] = {}

    @torch.compiler.disable
    def call(args: tuple[Any, ...], kwargs: dict[str, Any], func: Callable[..., Any]) -> Any:
        kind = type(args[0])
        if func is not kind.step.__wrapped__:  # type: ignore[attr-defined]  # super().step()
            return Optimizer.profile_hook_step(func)(*args, **kwargs)
        if kind not in steps:
            steps[kind] = _step(kind, settings)
        return steps[kind](*args, **kwargs)

    return call


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if torch.compiler.is_compiling() or vars(optimizer).pop(_TAKEN, False):
        return
    kind = type(optimizer)
    if kind in _warned or torch_private.compiled_for()[0] != "zero":
        return
    _warned.add(kind)
    warnings.warn(
        f"{kind.__name__}.step runs as it is written: Dynamo has given up on it before zc could "
        f"take it over; write optimizer.step = zc.compile_step(optimizer)",
        stacklevel=2,
    )
