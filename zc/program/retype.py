"""Deriving the types of a whole graph anew, after a pass has given nodes other operands."""

from collections.abc import Hashable
from contextlib import nullcontext

from torch import fx

from zc.program.alike import Alike
from zc.program.derived import derivations_of
from zc.program.lines import found_right
from zc.program.nodes import value_of
from zc.program.program import Program
from zc.program.storages import storages_of
from zc.program.types import has_unbacked


def retype(program: Program, graph: fx.Graph) -> None:
    """Derive the type of every computed node of ``graph`` anew, in order.

    A type that is right stays the object that it is. It is known to be right where the verifier
    found it right and nothing has changed since, or where a node that is alike was derived and
    found right; what is in a storage of its own may then stay there.
    """
    shape_env = program.fake_mode.shape_env
    quiet = nullcontext() if shape_env is None else shape_env.ignore_fresh_unbacked_symbols()
    alike, right, seen = Alike(), set[Hashable](), set[int]()
    lines = next((program.lines.get(n, {}) for n, g in program.graphs.items() if g is graph), {})
    with quiet:
        for node in graph.nodes:
            computed = node.op == "call_function" and not has_unbacked(value_of(node))
            if computed and not found_right(node, lines):
                _settle(program, node, alike, right, seen)
            seen.update(storages_of(node))


def _settle(
    program: Program, node: fx.Node, alike: Alike, right: set[Hashable], seen: set[int]
) -> None:
    """Leave the type of ``node`` where it is right, and derive it where it is not, or unknown."""
    older = [key for key in storages_of(node) if key in seen]
    shared = {key for source in node.all_input_nodes for key in storages_of(source) if older}
    key = alike.key(node) if shared.issuperset(older) else None
    if key is not None and key in right:
        return
    old = value_of(node)
    node.meta["val"] = derivations_of(program.fake_mode).type_of(node, program.fake_mode)
    if key is not None and alike.key(node) == key:
        node.meta["val"] = old
        right.add(key)
