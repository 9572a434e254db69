"""Classes that keep the same step counts, so that one number serves them all."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from zc.program.updates import Body, Slot, UpdateClass


def in_families(
    classes: Sequence[UpdateClass], values: Sequence[dict[str, str]]
) -> tuple[UpdateClass, ...]:
    """``classes`` with their families.

    Two are of one family when they belong to one group, their host values are equal now, and their
    bodies read the same of these and move them by the same arithmetic.
    """
    families: dict[Any, int] = {}
    found = []
    for kind, present in zip(classes, values, strict=True):
        key = (kind.group, tuple(sorted(present.items())), *_arithmetic(kind.body))
        found.append(replace(kind, family=families.setdefault(key, len(families))))
    return tuple(found)


def _arithmetic(body: Body) -> tuple[Any, Any]:
    """What a body reads of the host's values, and what becomes of them, as text."""
    slots = dict(zip(body.placeholders(), body.inputs, strict=True))
    kept = sorted(s.key for s in body.inputs if s.role in ("shared", "counter"))
    pairs = zip(body.writes, body.results(), strict=True)
    moved = sorted((s.key, _text(node, slots)) for s, node in pairs if s.on_host)
    return tuple(kept), tuple(moved)


def _text(value: Any, slots: dict[fx.Node, Slot]) -> str:
    if not isinstance(value, fx.Node):
        return repr(value)
    if value in slots:
        return slots[value].key
    arguments = [_text(a, slots) for a in (*value.args, *value.kwargs.values())]
    return f"{value.target}({', '.join(arguments)})"
