"""What happens to a finished program: it runs, or ``zc.capture`` takes it away."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from zc import torch_private
from zc.errors import ExecutionError
from zc.program.nodes import input_of
from zc.program.program import Program


class Captured(BaseException):
    """Ends the call of a function that is only being captured; no ``except Exception`` stops it."""


class Session:
    """Programs run."""

    runs = True

    def finished(self, program: Program) -> None:
        """Called with every program after its passes."""

    def wrap(self, program: Program, build: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
        """The boxed function that torch calls for ``program`` or one half of it."""
        loop = build()
        checked = False

        def run(args: list[Any]) -> Any:
            nonlocal checked
            if not checked:
                refuse_meta(program, args)
                checked = True
            return loop(args)

        return torch_private.boxed(run)


class CaptureSession(Session):
    """Programs are collected; nothing is compiled or run, and no other rank is asked."""

    runs = False

    def __init__(self) -> None:
        self.programs: list[Program] = []

    def finished(self, program: Program) -> None:
        """Keep ``program``."""
        self.programs.append(program)

    def wrap(self, program: Program, build: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
        """A function that ends the call."""

        def stop(args: list[Any]) -> Any:
            raise Captured

        return torch_private.boxed(stop)


def current_session() -> Session:
    """The session that compiled functions belong to."""
    return _current.get()


@contextmanager
def capture_session() -> Iterator[CaptureSession]:
    """Collect programs instead of running them."""
    session = CaptureSession()
    token = _current.set(session)
    try:
        yield session
    finally:
        _current.reset(token)


def refuse_meta(program: Program, args: list[Any]) -> None:
    """A parameter that was never materialised cannot be trained.

    Raises:
        ExecutionError: naming the first such parameter.
    """
    for node in program.placeholders("param"):
        index = input_of(node).index
        if index is not None and index < len(args) and getattr(args[index], "is_meta", False):
            raise ExecutionError(
                f"parameter '{input_of(node).subject}' is still on the meta device; call "
                f"zc.materialize(model, device) and initialise or load it before the first step"
            )


_current: ContextVar[Session] = ContextVar("zc_session", default=Session())  # noqa: B039
