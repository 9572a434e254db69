"""The table of collectives: what each op moves, on which axis and lane, and where it is waited for.

Verifier, reports and cost model read this table and nothing else about communication. Bytes follow
the ring formulas (Thakur et al. 2005; Rajbhandari et al. 1910.02054, section 7): with payload S
(the full tensor) and N ranks, a gather or a reduce-scatter puts S(N-1)/N on each rank's wire, an
all-reduce twice that.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from operator import getitem
from typing import Any

import torch
from torch import fx

from zc.program.loops import loop_by_node
from zc.program.mesh import Mesh
from zc.program.nodes import tensors_of
from zc.program.program import Program
from zc.program.stamps import Stamp, stamp_of

C10D: Any = torch.ops._c10d_functional
WAIT = C10D.wait_tensor.default


@dataclass(frozen=True)
class CollectiveSpec:
    """What is true of every call of one collective op.

    ``lane`` names the queue it runs on, ``axis_arg`` the position of the axis among its arguments,
    ``payload`` gives the bytes of the full tensor, ``wire_factor`` the multiple of S(N-1)/N sent,
    ``scratch`` the bytes that it needs from its start to its wait beside operands and results.
    """

    op: str
    lane: str
    axis_arg: int
    payload: Callable[[fx.Node], int]
    wire_factor: int = 1
    pure: bool = True
    scratch: Callable[[fx.Node], int] = lambda node: 0


@dataclass(frozen=True)
class Collective:
    """One collective of a program: a row of the table.

    Bytes are those of one call; ``times`` is how often it is called, once a micro-batch in a loop.
    """

    node: fx.Node
    spec: CollectiveSpec
    axis: str
    group_size: int
    payload_bytes: int
    stamp: Stamp
    waits: tuple[fx.Node, ...]
    times: int = 1

    @property
    def wire_bytes(self) -> int:
        """Bytes that each rank sends: blocks of ceil(elements / N), which only all-reduces pad."""
        n = self.group_size
        gathers = self.spec.payload is output_bytes
        fulls = tensors_of(self.node) if gathers else operand_tensors(self.node)
        blocks = sum(-(-hint(full.numel()) // n) * full.element_size() for full in fulls)
        return self.spec.wire_factor * (n - 1) * blocks


def output_bytes(node: fx.Node) -> int:
    """Bytes of what ``node`` returns."""
    return sum(nbytes(t) for t in tensors_of(node))


def operands_of(collective: fx.Node) -> list[fx.Node]:
    """What a collective sends or reduces: one value, or each of a bucket."""
    given: Any = collective.args[0]
    return [given] if isinstance(given, fx.Node) else list(given)


def operand_tensors(collective: fx.Node) -> list[torch.Tensor]:
    """The types of ``operands_of``."""
    return [tensor for operand in operands_of(collective) for tensor in tensors_of(operand)]


def input_bytes(node: fx.Node) -> int:
    """Bytes of what the collective ``node`` reads."""
    return sum(map(nbytes, operand_tensors(node)))


def receive_bytes(node: fx.Node) -> int:
    """Bytes, beyond the result, of the room that a reduce-scatter on CPUs receives blocks in.

    There blocks are sent to their ranks and added in rank order (``zc.comm.wire``), so every rank's
    block arrives whole; elsewhere the backend sums on the way.
    """
    on_cpu = all(operand.device.type == "cpu" for operand in operand_tensors(node))
    return input_bytes(node) - output_bytes(node) if on_cpu else 0


def nbytes(tensor: torch.Tensor) -> int:
    """Bytes of ``tensor``; symbolic sizes count as their hints."""
    return hint(tensor.numel()) * tensor.element_size()


def hint(size: int | torch.SymInt) -> int:
    """``size`` as a number: a symbol stands for the size seen at capture."""
    if isinstance(size, int):
        return size
    value = size.node.hint
    return 0 if value is None else int(value)


COLLECTIVES: dict[Any, CollectiveSpec] = {
    C10D.all_gather_into_tensor.default: CollectiveSpec("all_gather", "gather", 2, output_bytes),
    C10D.all_gather_into_tensor_coalesced.default: CollectiveSpec(
        "all_gather", "gather", 2, output_bytes
    ),
    C10D.reduce_scatter_tensor.default: CollectiveSpec(
        "reduce_scatter", "reduce", 3, input_bytes, scratch=receive_bytes
    ),
    C10D.reduce_scatter_tensor_coalesced.default: CollectiveSpec(
        "reduce_scatter", "reduce", 3, input_bytes, scratch=receive_bytes
    ),
    C10D.all_reduce.default: CollectiveSpec("all_reduce", "reduce", 2, input_bytes, 2),
    C10D.all_reduce_coalesced.default: CollectiveSpec("all_reduce", "reduce", 2, input_bytes, 2),
    C10D.all_to_all_single.default: CollectiveSpec("all_to_all", "gather", 3, input_bytes),
}


_NAMESPACE = "_c10d_functional"
_STARTS = frozenset(map(id, COLLECTIVES))  # ops are hashed by Python code, which takes longer


def is_collective(node: fx.Node) -> bool:
    """True for a node that starts a collective."""
    return id(node.target) in _STARTS


def is_wait(node: fx.Node) -> bool:
    """True for a node that waits for one."""
    return node.target is WAIT


@cache
def communicates(target: Any) -> bool:
    """Whether ``target`` is one of torch's collectives or waits, in the table or not."""
    schema = getattr(target, "_schema", None)
    return schema is not None and schema.name.split("::")[0] == _NAMESPACE


def start_of(wait: fx.Node) -> fx.Node | None:
    """The collective that ``wait`` waits for: in a bucket, for one of its items."""
    source = wait.args[0]
    if isinstance(source, fx.Node) and source.target is getitem:
        source = source.args[0]
    return source if isinstance(source, fx.Node) and is_collective(source) else None


def waits_of(start: fx.Node) -> list[fx.Node]:
    """The waits for ``start``, whose results may be items of it."""
    results = [start, *(user for user in start.users if not is_wait(user))]
    return [user for result in results for user in result.users if is_wait(user)]


def is_coalesced(collective: fx.Node) -> bool:
    """Whether a collective is a bucket: it takes a list, and its results are items."""
    return not isinstance(collective.args[0], fx.Node)


def collective_of(node: fx.Node, mesh: Mesh, times: int = 1) -> Collective:
    """The row of the table for one collective node, which is called ``times`` times."""
    spec = COLLECTIVES[node.target]
    axis = _axis_of(node)
    outputs = [node, *(u for u in node.users if not is_wait(u))]  # a coalesced one has getitems
    waits = tuple(u for out in outputs for u in out.users if is_wait(u))
    payload, stamp = spec.payload(node), stamp_of(node)
    return Collective(node, spec, axis, mesh.size(axis), payload, stamp, waits, times)


def group_size(node: fx.Node, mesh: Mesh) -> int:
    """Ranks of the group of a collective node."""
    return mesh.size(_axis_of(node))


def _axis_of(node: fx.Node) -> str:
    return str(node.args[COLLECTIVES[node.target].axis_arg])


def collectives_of(program: Program) -> Iterator[Collective]:
    """All collectives of ``program``, in program order."""
    for graph in program.graphs.values():
        inside = loop_by_node(graph)
        for node in graph.nodes:
            if is_collective(node):
                times = inside[node].count if node in inside else 1
                yield collective_of(node, program.mesh, times)
