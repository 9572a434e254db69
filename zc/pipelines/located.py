"""Values with the place where somebody wrote them, and messages that name it.

A pass pipeline comes from a YAML file or from a Python list; both become a tree of ``Located``
before anything looks at them, so every message reads ``zero3.yaml:2: ...`` or ``passes[1]: ...``.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from zc.errors import PipelineError


@dataclass(frozen=True)
class Located:
    """A value and its place: ``value`` is a scalar, a pass, a list or a dictionary of ``Located``.

    An entry of a dictionary has the place of its key.
    """

    value: Any
    where: str

    def fail(self, message: str) -> PipelineError:
        """The error that says ``message`` about this place."""
        return PipelineError(f"{self.where}: {message}")


@contextmanager
def located(where: str) -> Iterator[None]:
    """Put ``where`` before the message of an error raised inside.

    Raises:
        PipelineError: for every PipelineError and ValueError raised inside.
    """
    try:
        yield
    except (PipelineError, ValueError) as error:
        raise PipelineError(f"{where}: {error}") from error


def from_python(value: Any, where: str) -> Located:
    """The tree of a Python value; item ``i`` of a list stands at ``passes[i]``.

    Raises:
        PipelineError: for a dictionary whose keys are not text.
    """
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise PipelineError(f"{where}: a key must be text; got {show(key)}")
        return Located({key: from_python(v, where) for key, v in value.items()}, where)
    if isinstance(value, list | tuple):
        items = [from_python(item, f"passes[{i}]") for i, item in enumerate(value)]
        return Located(items, where)
    return Located(value, where)


def show(value: Any) -> str:
    """A value as a message shows it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"'{value}'"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, Mapping):
        return "a mapping"
    return (
        str(value)
        if isinstance(value, int | float)
        else f"an object of class {type(value).__name__}"
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the known name nearest to ``name``; empty when none is near."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
