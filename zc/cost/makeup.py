"""What memory consists of at one node of a program: bytes by kind, and the largest values.

gathered parameters 4096 (%w1_full 2048, %w0_full 2048), activations 1024 (%tanh 512, ...)
"""

from dataclasses import dataclass

from torch import fx

from zc.program.collectives import COLLECTIVES, is_collective, is_wait
from zc.program.liveness import MemoryPoint, largest_live
from zc.program.loops import ACCUMULATOR
from zc.program.nodes import input_of, is_view
from zc.program.program import Program
from zc.program.stamps import BACKWARD, FORWARD, stamp_of

AT_REST, GATHERED, GRADIENTS = "parameters at rest", "gathered parameters", "gradients"
OPTIMIZER, ACTIVATIONS, INPUTS = "optimizer state", "activations", "inputs"
IN_FLIGHT, TEMPORARY = "collectives in flight", "temporary values"
_INPUTS = {"param": AT_REST, "grad": GRADIENTS}
_ALL = 1 << 60


@dataclass(frozen=True)
class Kind:
    """Bytes of one kind of values, and the largest of them, largest first."""

    name: str
    nbytes: int
    largest: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        values = ", ".join(f"%{name} {size}" for name, size in self.largest)
        return f"{self.name} {self.nbytes}" + (f" ({values})" if values else "")


def makeup(program: Program, point: MemoryPoint, count: int = 3) -> list[Kind]:
    """What is live at ``point``, by kind, largest first; bytes add up to ``point.live_bytes``.

    Args:
        program: that the point is of.
        point: of ``memory_timeline``.
        count: how many values of each kind to name.
    """
    graph = point.node.graph
    order = {node: index for index, node in enumerate(graph.nodes)}
    returned = {value for value in program.output_values() if value is not None}
    found: dict[str, list[tuple[str, int]]] = {}
    for node, size in largest_live(graph, point.node, _ALL, fused=program.fused):
        kind = kind_of(program, node, order, order[point.node], returned)
        found.setdefault(kind, []).append((node.name, size))
    listed = sum(size for values in found.values() for _, size in values)
    kinds = [Kind(k, sum(s for _, s in v), tuple(v[:count])) for k, v in found.items()]
    if point.live_bytes > listed:
        kinds.append(Kind(IN_FLIGHT, point.live_bytes - listed, ()))  # room to receive in
    return sorted((kind for kind in kinds if kind.nbytes), key=lambda kind: -kind.nbytes)


def kind_of(
    program: Program, node: fx.Node, order: dict[fx.Node, int], at: int, returned: set[fx.Node]
) -> str:
    """What the storage that ``node`` made is for, seen from the node at position ``at``."""
    if node.op == "placeholder":
        return _kind_of_input(program, node)
    if node.op == "get_attr":
        return INPUTS
    if node.target is ACCUMULATOR or _is_gradient(program, node, returned):
        return GRADIENTS
    source = node.all_input_nodes[0] if is_wait(node) else node
    if stamp_of(node).param and (not is_collective(source) or _lane(source) == "gather"):
        return GATHERED
    if is_collective(source):
        return GATHERED if _lane(source) == "gather" else GRADIENTS
    late = any(stamp_of(user).phase == BACKWARD for user in _readers(node) if order[user] >= at)
    return ACTIVATIONS if stamp_of(node).phase == FORWARD and late else TEMPORARY


def _kind_of_input(program: Program, node: fx.Node) -> str:
    about = input_of(node)
    if about.kind == "state":
        return OPTIMIZER if program.state[about.subject].kind == "optimizer" else INPUTS
    return _INPUTS.get(about.kind, INPUTS)


def _is_gradient(program: Program, node: fx.Node, returned: set[fx.Node]) -> bool:
    """Whether ``node`` is reduced over ranks, or returned as a gradient, itself or as a view."""
    if stamp_of(node).phase != BACKWARD:
        return False
    reduced = (is_collective(user) and _lane(user) == "reduce" for user in _readers(node))
    return any(reduced) or node in returned or bool(returned & set(_readers(node)))


def _readers(node: fx.Node) -> list[fx.Node]:
    """Who reads ``node`` or a view of it."""
    readers = list(node.users)
    for reader in readers:  # grows meanwhile
        if reader.op == "call_function" and is_view(reader):
            readers += reader.users
    return readers


def _lane(collective: fx.Node) -> str:
    return COLLECTIVES[collective.target].lane
