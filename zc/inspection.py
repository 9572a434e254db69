"""``zc.capture``: the program of a function without running it."""

from collections.abc import Callable
from typing import Any

import torch

from zc import torch_private
from zc.backend import zero
from zc.capture.session import Captured, capture_session
from zc.errors import CaptureError, ZcError
from zc.pipelines.pipeline import PassPipeline
from zc.program.program import Program


def capture(
    function: Callable[..., Any],
    *args: Any,
    passes: Any = (),
    options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Program:
    """Capture the first compiled piece of ``function(*args, **kwargs)`` and run passes on it.

    Nothing is executed and no parameter is read, so parameters and arguments may be on the meta
    device and the process group a fake one of any size. Functions that this process has compiled
    before are compiled again at their next call (``torch.compiler.reset``).

    Args:
        function: a model, or a step with ``backward()`` inside.
        *args: example arguments of the call.
        passes: a pass pipeline as in ``options``; none by default, which gives the logical program.
        options: further options of the ``zero`` backend.
        **kwargs: example keyword arguments.

    Raises:
        CaptureError: when Dynamo finds nothing to compile.
    """
    torch_private.configure_dynamo()
    pipeline = passes or PassPipeline("logical", "interpret", ())
    chosen = (options or {}) | {"passes": pipeline}

    def backend(module: Any, inputs: Any) -> Any:
        return zero(module, inputs, options=chosen)

    torch.compiler.reset()
    with capture_session() as session:
        try:
            torch.compile(function, backend=backend)(*args, **kwargs)
        except Captured:
            pass
        except Exception as error:
            inner = getattr(error, "inner_exception", None)
            if isinstance(inner, ZcError):
                raise inner from None
            raise
        finally:
            torch.compiler.reset()
    if not session.programs:
        raise CaptureError(
            f"nothing was captured from {getattr(function, '__name__', type(function).__name__)}: "
            f"no tensor operation was traced; TORCH_LOGS=graph_breaks shows why"
        )
    return session.programs[0]
