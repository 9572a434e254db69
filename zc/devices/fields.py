"""Entries of a device file, each of the type that it must have."""

from typing import Any

from zc.errors import PipelineError
from zc.pipelines.located import Located, nearest, show
from zc.program.units import Bytes, Duration, Rate

_KINDS = {
    str: "text", int: "a whole number", float: "a number", bool: "true or false",
    dict: "a mapping", Bytes: "a size such as 80GB", Duration: "a duration such as 10us",
    Rate: "a rate such as 3.35TB/s",
}  # fmt: skip


def mapping(
    place: Located, subject: str, needed: dict[str, Any], optional: dict[str, Any] | None = None
) -> dict[str, Located]:
    """The entries at ``place``, with none missing and none unknown; see ``scalar`` for their types.

    Args:
        place: what is there.
        subject: what errors call it.
        needed: the types of the keys that must be there.
        optional: the types of those that may be.

    Raises:
        PipelineError: for anything else, by line.
    """
    known = needed | (optional or {})
    if not isinstance(place.value, dict):
        raise place.fail(f"{subject} must be a mapping; got {show(place.value)}")
    for key, value in place.value.items():
        if key not in known:
            hint = nearest(key, known) or f"; the keys are {', '.join(known)}"
            raise value.fail(f"unknown key '{key}' in {subject}{hint}")
        if known[key] is dict and not isinstance(value.value, dict):
            raise value.fail(f"'{key}' must be a mapping; got {show(value.value)}")
    missing = [key for key in needed if key not in place.value]
    if missing:
        raise place.fail(f"{subject} needs '{missing[0]}'")
    return place.value


def scalar(place: Located, wanted: Any) -> Any:
    """The value at ``place`` as ``wanted``, which is a type that YAML has, or a unit.

    Raises:
        PipelineError: for a value of another type, or without its unit, by line.
    """
    value = place.value
    if wanted in (Bytes, Duration, Rate):
        try:
            return wanted(str(value))
        except PipelineError as error:
            raise place.fail(str(error)) from error
    fits = type(value) is wanted or (wanted is float and type(value) is int)
    if not fits:
        raise place.fail(f"must be {_KINDS[wanted]}; got {show(value)}")
    return wanted(value)
