"""Provenance: what each node is for and who made it, as one immutable value per node.

No pass recognises by shape what another one did; it reads the stamp.
"""

from dataclasses import dataclass, replace
from typing import Any

from torch import fx

FORWARD, BACKWARD, UPDATE = "forward", "backward", "update"
PHASES = (FORWARD, BACKWARD, UPDATE)
_KEY = "zc"


@dataclass(frozen=True)
class Stamp:
    """Provenance of one node.

    ``phase`` is forward, backward or update; ``made_by`` the pass that inserted it (``capture``
    for the user's own nodes); ``param`` the parameter it gathers, casts, unpacks or reduces;
    ``bucket`` the bucket of a coalesced collective; ``module`` the qualified name of the module
    whose code it came from; ``source`` the user's line, ``file:line``.
    """

    phase: str = FORWARD
    made_by: str = "capture"
    param: str = ""
    bucket: int | None = None
    recompute: bool = False
    user: bool = False
    module: str = ""
    source: str = ""


def stamp_of(node: fx.Node) -> Stamp:
    """The stamp of ``node``; the default stamp for one that was never stamped."""
    return node.meta.get(_KEY, _DEFAULT)


def place_of(node: fx.Node) -> str:
    """The user's line that ``node`` comes from, ``file:line``; empty where that is not known."""
    return stamp_of(node).source


def set_stamp(node: fx.Node, stamp: Stamp) -> None:
    """Replace the stamp of ``node``."""
    node.meta[_KEY] = stamp


def restamp(node: fx.Node, **changes: Any) -> None:
    """Replace some fields of the stamp of ``node``."""
    node.meta[_KEY] = replace(stamp_of(node), **changes)


_DEFAULT = Stamp()
