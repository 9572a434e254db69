"""Options of a pass: the fields of its dataclass, checked and converted by their types."""

import dataclasses
import math
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from zc.errors import PipelineError
from zc.pipelines.located import Located, located, nearest, show
from zc.program.pass_base import Pass
from zc.program.units import Bytes, Duration

_MEANING = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Bytes: "a size such as 100KB",
    Duration: "a duration such as 10ms",
}


@dataclass(frozen=True)
class Option:
    """One option: its field's name, type and default (MISSING when it must be given)."""

    name: str
    type: Any
    default: Any

    @property
    def must_be_given(self) -> bool:
        """True for an option without a default."""
        return self.default is dataclasses.MISSING


def options_of(cls: type[Pass]) -> dict[str, Option]:
    """The options of a pass by name, in the order of its fields.

    Raises:
        PipelineError: for a field whose type cannot be written in YAML.
    """
    hints = typing.get_type_hints(cls)
    options = {f.name: Option(f.name, hints[f.name], f.default) for f in dataclasses.fields(cls)}
    for option in options.values():
        if not _is_supported(option.type):
            raise PipelineError(
                f"{cls.__module__}: option '{option.name}' has type {type_name(option.type)}; "
                f"an option is bool, int, float, str, Bytes, Duration, a Literal, or one of "
                f"them or None"
            )
    return options


def make_pass(cls: type[Pass], name: str, given: dict[str, Located], where: str) -> Pass:
    """The pass ``cls`` with the options ``given``.

    Raises:
        PipelineError: for an unknown or missing option, and a value of wrong type, unit or range.
    """
    known = options_of(cls)
    for option_name, place in given.items():
        if option_name not in known:
            raise place.fail(_unknown_option(name, option_name, tuple(known)))
    for option in known.values():
        if option.must_be_given and option.name not in given:
            raise PipelineError(f"{where}: '{name}' needs its option '{option.name}'")
    values = {
        key: read_at(place, known[key].type, f"option '{key}' of '{name}'")
        for key, place in given.items()
    }
    with located(f"{where}: '{name}'"):
        return cls(**values)


def read_at(place: Located, wanted: Any, subject: str) -> Any:
    """The value at ``place`` as the type ``wanted``; a message says that it is of ``subject``.

    Raises:
        PipelineError: when it is of another type, or has a wrong unit.
    """
    try:
        return read_value(place.value, wanted)
    except PipelineError as error:
        joint = " " if str(error).startswith("must be") else ": "
        raise place.fail(f"{subject}{joint}{error}") from error


def read_value(value: Any, wanted: Any) -> Any:
    """``value``, as written in YAML or Python, as the type ``wanted``.

    Raises:
        PipelineError: when it is of another type, or has a wrong unit.
    """
    inner = _without_none(wanted)
    if value is None and inner is not wanted:
        return None
    if not _fits(value, inner):
        near = _near_choice(value, inner)
        raise PipelineError(f"must be {_meaning(wanted)}; got {show(value)}{near}")
    return _converted(value, inner)


def type_name(wanted: Any) -> str:
    """A type as ``zc passes`` shows it: ``int``, ``Bytes``, ``auto | triton``, ``str | null``."""
    inner = _without_none(wanted)
    if get_origin(inner) is Literal:
        name = " | ".join(str(choice) for choice in get_args(inner))
    else:
        name = inner.__name__ if isinstance(inner, type) else str(inner)
    return name if inner is wanted else f"{name} | null"


def _fits(value: Any, wanted: Any) -> bool:
    kind = type(value)
    if wanted in (Bytes, Duration):
        return kind in (str, int, float, wanted)  # a number without unit is refused later
    if get_origin(wanted) is Literal:
        return any(kind is type(choice) and value == choice for choice in get_args(wanted))
    if wanted is float:
        return kind in (int, float) and math.isfinite(value)
    return kind is wanted


def _converted(value: Any, wanted: Any) -> Any:
    if wanted in (Bytes, Duration):
        return wanted(str(value))
    return float(value) if wanted is float else value


def _unknown_option(pass_name: str, option: str, known: tuple[str, ...]) -> str:
    hint = nearest(option, known)
    if not hint:
        hint = f"; its options are {', '.join(known)}" if known else "; it takes no options"
    return f"'{pass_name}' has no option '{option}'{hint}"


def _meaning(wanted: Any) -> str:
    inner = _without_none(wanted)
    if get_origin(inner) is Literal:
        text = " or ".join(show(choice) for choice in get_args(inner))
    else:
        text = _MEANING[inner]
    return text if inner is wanted else f"{text}, or null"


def _near_choice(value: Any, wanted: Any) -> str:
    if not isinstance(value, str) or get_origin(wanted) is not Literal:
        return ""
    return nearest(value, [choice for choice in get_args(wanted) if isinstance(choice, str)])


def _is_supported(wanted: Any) -> bool:
    inner = _without_none(wanted)
    return get_origin(inner) is Literal or inner in _MEANING


def _without_none(wanted: Any) -> Any:
    """``X`` for ``X | None``, else the type itself."""
    if get_origin(wanted) not in (typing.Union, types.UnionType):
        return wanted
    rest = [arg for arg in get_args(wanted) if arg is not type(None)]
    return rest[0] if len(rest) == 1 and len(get_args(wanted)) == 2 else wanted
