"""Storages: which memory the value of a node keeps, and which operands a node writes to."""

from functools import cache
from typing import Any

from torch import fx

from zc.program.collectives import hint
from zc.program.nodes import tensors_of

_STORAGES = "zc_storages"  # with a node: its value, and what storages_of says of it


def storages_of(node: fx.Node) -> dict[int, int]:
    """Storages that the value of ``node`` keeps alive: identity to bytes; not to be changed.

    The answer is kept with the node, for as long as its value is the same object.
    """
    meta = node.meta
    value, known = meta.get("val"), meta.get(_STORAGES)
    if known is not None and known[0] is value:
        return known[1]
    found = {}
    for tensor in tensors_of(node):
        storage = tensor.untyped_storage()
        found[storage._cdata] = hint(storage.nbytes())  # type: ignore[arg-type]
    meta[_STORAGES] = value, found
    return found


def written_operands(node: fx.Node) -> list[fx.Node]:
    """The operands that ``node`` writes to, from the schema of its op; most ops write to none."""
    if node.op != "call_function":
        return []
    arguments = _written_arguments(node.target)
    if not arguments:
        return []
    written = []
    for position, name in arguments:
        value = node.args[position] if position < len(node.args) else node.kwargs.get(name)
        items = value if isinstance(value, (list, tuple)) else [value]
        written += [item for item in items if isinstance(item, fx.Node)]
    return written


@cache
def _written_arguments(target: Any) -> tuple[tuple[int, str], ...]:
    schema = getattr(target, "_schema", None)
    if schema is None:
        return ()
    return tuple(
        (i, a.name)
        for i, a in enumerate(schema.arguments)
        if a.alias_info is not None and a.alias_info.is_write
    )
