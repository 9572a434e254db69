"""The frame that Dynamo is compiling: what it is compiled for, and another in its place."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo

from zc.torch_private.dynamo import output_being_traced

_hooks: list[Any] = []  # of the compilation that goes on
_allow_empty: list[bool] = []  # Dynamo's setting before it


def compiled_for() -> tuple[str, dict[str, Any]]:
    """Name and options of the backend that the code which runs, or is traced, is compiled for.

    The name is empty where nothing is being compiled.
    """
    from torch._C._dynamo.eval_frame import get_eval_frame_callback

    root = _root_frame()
    backend: Any = get_eval_frame_callback() if root is None else root.output.compiler_fn
    while hasattr(backend, "_torchdynamo_orig_backend"):
        backend = backend._torchdynamo_orig_backend
    options = getattr(backend, "kwargs", {}).get("options")
    return getattr(backend, "compiler_name", ""), options or {}


torch._dynamo.eval_frame.skip_code(compiled_for.__code__)


def replace_frame(call: Callable[..., Any] | None) -> None:
    """Let the frame that Dynamo is compiling right now do nothing but ``return call(...)``.

    ``call`` gets one value for each name in the signature (``*args`` and ``**kwargs`` as a tuple
    and a dictionary), then one for each variable of the closure. It is called whatever these are:
    the only guards left are those on torch's modes. Without ``call`` the frame runs as it is
    written, and what it calls is compiled. Nothing happens where Dynamo gives the frame up.
    """
    root: Any = _root_frame()

    def hook(code: Any, new_code: Any) -> Any:
        if code is not root.f_code:
            return None
        guards = root.output.guards.inner
        for guard in list(guards):
            if guard.name or guard.create_fn_name() == "SHAPE_ENV":
                guards.discard(guard)
        return code.replace() if call is None else _code_calling(code, call)

    if not _hooks:
        torch._dynamo.callback.on_compile_end(_compile_ended)
        _allow_empty.append(torch._dynamo.config.allow_empty_graphs)
    torch._dynamo.config.allow_empty_graphs = True  # else a frame without tensor work is given up
    _hooks.append(torch._dynamo.convert_frame.register_bytecode_hook(hook))


def _compile_ended(_: Any) -> None:
    for hook in _hooks:
        hook.remove()
    _hooks.clear()
    torch._dynamo.config.allow_empty_graphs = _allow_empty.pop()
    callbacks = torch._dynamo.callback.callback_handler
    if _compile_ended in callbacks.end_callbacks:
        callbacks.remove_end_callback(_compile_ended)


def _code_calling(code: Any, call: Callable[..., Any]) -> Any:
    """Code with the signature of ``code`` that returns what ``call`` returns."""
    from torch._dynamo import bytecode_transformation as bytecode

    def write(instructions: list[Any], _: dict[str, Any]) -> None:
        new = bytecode.create_instruction
        (begin,) = (i for i, each in enumerate(instructions) if each.opname == "RESUME")
        instructions[begin + 1 :] = [
            *bytecode.add_push_null([new("LOAD_CONST", argval=call)]),
            *(new("LOAD_FAST", argval=name) for name in names),
            *(new("LOAD_DEREF", argval=name) for name in code.co_freevars),
            *bytecode.create_call_function(len(names) + len(code.co_freevars), False),
            new("RETURN_VALUE"),
        ]

    flags = code.co_flags
    variadic = bool(flags & inspect.CO_VARARGS) + bool(flags & inspect.CO_VARKEYWORDS)
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + variadic]
    return bytecode.transform_code_object(code, write)[0]


def _root_frame() -> Any:
    """Dynamo's translator of the frame that it is compiling; ``None`` outside of compilation."""
    output = output_being_traced()
    return None if output is None else output.root_tx
