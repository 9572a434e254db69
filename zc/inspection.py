"""``zc.capture``: the program of a function without running it."""

import re
import warnings
from collections.abc import Callable
from typing import Any

import torch

from zc import torch_private
from zc.backend import zero
from zc.capture.session import Captured, capture_session
from zc.errors import CaptureError, ZcError
from zc.pipelines.pipeline import PassPipeline
from zc.program.program import Program

_NO_DERIVATIVE = "an autograd kernel was not registered"


def capture(
    function: Callable[..., Any],
    *args: Any,
    passes: Any = (),
    options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Program:
    """Capture the first compiled piece of ``function(*args, **kwargs)`` and run passes on it.

    Nothing is executed and no parameter is read, so the process group may be a fake one of any
    size, and parameters and arguments may have no memory (``with zc.without_memory():``), or be on
    the meta device where torch differentiates all of their ops there. Functions that this process
    has compiled before are compiled again at their next call (``torch.compiler.reset``).

    Args:
        function: a model, or a step with ``backward()`` inside.
        *args: example arguments of the call.
        passes: a pass pipeline as in ``options``; none by default, which gives the logical program.
        options: further options of the ``zero`` backend.
        **kwargs: example keyword arguments.

    Raises:
        CaptureError: when Dynamo finds nothing to compile, and for an op without a derivative on
            the device of its operands.
    """
    torch_private.configure_dynamo()
    pipeline = passes or PassPipeline("logical", "interpret", ())
    chosen = (options or {}) | {"passes": pipeline}

    def backend(module: Any, inputs: Any) -> Any:
        return zero(module, inputs, options=chosen)

    torch.compiler.reset()
    with capture_session() as session, warnings.catch_warnings():
        warnings.filterwarnings("error", message=f".*{_NO_DERIVATIVE}")
        try:
            torch.compile(function, backend=backend)(*args, **kwargs)
        except Captured:
            pass
        except Exception as error:
            inner = getattr(error, "inner_exception", None)
            if isinstance(inner, ZcError):
                raise inner from None
            if _NO_DERIVATIVE in str(error):
                raise CaptureError(_no_derivative(function, str(error))) from error
            raise
        finally:
            torch.compiler.reset()
    if not session.programs:
        raise CaptureError(
            f"nothing was captured from {_name(function)}: "
            f"no tensor operation was traced; TORCH_LOGS=graph_breaks shows why"
        )
    return session.programs[0]


def _no_derivative(function: Callable[..., Any], warning: str) -> str:
    op = re.search(rf"(\w+::\w+): {_NO_DERIVATIVE}", warning)
    return (
        f"{_name(function)} calls {op.group(1) if op else 'an op'}, which has no derivative on the "
        f"device of its operands, so gradients would be zero; in the place of the meta device use "
        f"tensors without memory: 'with zc.without_memory(): zc.materialize(model, \"cpu\")', and "
        f"make the arguments there too"
    )


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))
