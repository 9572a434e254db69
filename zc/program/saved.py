"""What forward keeps for backward: every storage of forward, who reads it, who writes to it."""

from dataclasses import dataclass, field

from torch import fx

from zc.program.analysis import parameter_sources
from zc.program.loops import loop_by_node
from zc.program.nodes import input_of
from zc.program.program import Program
from zc.program.stamps import BACKWARD, FORWARD, UPDATE, stamp_of
from zc.program.storages import storages_of, written_operands


@dataclass
class Stored:
    """One storage of forward: ``members`` are the value that made it and its views.

    ``late`` says that backward reads it, ``held`` that it lives on whatever backward reads.
    """

    key: int
    size: int
    members: list[fx.Node] = field(default_factory=list)
    late: bool = False
    held: bool = False
    returned: bool = False  # to the caller, before backward runs

    @property
    def maker(self) -> fx.Node:
        """The value that the storage was made for."""
        return self.members[0]

    @property
    def is_input(self) -> bool:
        """Whether the caller, or the program, holds it throughout."""
        return self.maker.op != "call_function"


def stored_by_forward(program: Program) -> dict[int, Stored]:
    """All storages that forward gets or makes, in order."""
    found: dict[int, Stored] = {}
    for node in program.graph.nodes:
        if node.op == "output" or _is_late(node):
            continue
        for key, size in storages_of(node).items():
            found.setdefault(key, Stored(key, size)).members.append(node)
    early = set(program.output_values()[: program.forward_outputs]) if program.level == 1 else set()
    for stored in found.values():
        for member in stored.members:
            for user in member.users:
                phase = stamp_of(user).phase
                stored.late |= user.op == "call_function" and phase == BACKWARD
                late_output = user.op == "output" and member not in early
                stored.held |= phase == UPDATE or late_output
            stored.returned |= member in early
    return found


def saved_for_backward(program: Program) -> list[Stored]:
    """The storages that forward makes and backward reads, in order."""
    stored = stored_by_forward(program).values()
    return [s for s in stored if s.late and not s.is_input]


def _is_late(node: fx.Node) -> bool:
    if node.op == "placeholder":
        return input_of(node).kind == "tangent"
    return node.op == "call_function" and stamp_of(node).phase != FORWARD


def changing_storages(program: Program) -> set[int]:
    """Storages that are written to before the last backward node may have read them.

    At level 1 forward's writes come before all of backward, wherever they stand; in a loop a write
    comes before what the next turn reads.
    """
    nodes = list(program.graph.nodes)
    late = [i for i, n in enumerate(nodes) if n.op == "call_function" and _is_late(n)]
    backward = [i for i in late if stamp_of(nodes[i]).phase == BACKWARD]
    loops, last = loop_by_node(program.graph), max(backward, default=-1)
    found: set[int] = set()
    for index, node in enumerate(nodes):
        in_forward = program.level == 1 and stamp_of(node).phase == FORWARD
        if index < last or node in loops or in_forward:
            found.update(key for value in written_operands(node) for key in storages_of(value))
    return found


def gathered_again(program: Program) -> set[int]:
    """Storages of forward that hold parameters which backward gathers again (stage 3)."""
    if program.rules.get("zero_stage") != 3:
        return set()
    kept = set(program.rules.get("kept_gathered", ()))
    sources = parameter_sources(program.graph)
    own = {k for n in program.placeholders() for k in storages_of(n)}
    again = (node for node, names in sources.items() if not names <= kept)
    return {key for node in again for key in storages_of(node)} - own
