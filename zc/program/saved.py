"""What forward keeps for backward: every storage of forward, and what saving it would cost."""

import operator
from collections.abc import Hashable
from dataclasses import dataclass, field

from torch import fx

from zc.program.analysis import parameter_sources
from zc.program.loops import Loop, loop_by_node
from zc.program.min_cut import Choice
from zc.program.nodes import input_of
from zc.program.program import Program
from zc.program.recompute import is_cheap
from zc.program.stamps import BACKWARD, FORWARD, UPDATE, stamp_of
from zc.program.storages import storages_of, written_operands
from zc.program.views import viewed_by


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


@dataclass
class Savings:
    """The choices of a program: what each storage costs, and which can be computed again.

    Not computed again is what takes more than ``max_ops`` in a row, or is used inside a loop that
    it stands before. Not saved are parameters that backward gathers again, memory that is written
    to before backward ends and, at level 1, what the caller may change before backward runs.
    """

    program: Program
    max_ops: int
    smallest: int
    redraw: bool
    stored: dict[int, Stored] = field(init=False)
    choices: dict[Hashable, Choice] = field(init=False)

    def __post_init__(self) -> None:
        self.stored = stored_by_forward(self.program)
        loops = loop_by_node(self.program.graph)
        changing, gathered = changing_storages(self.program), gathered_again(self.program)
        depths: dict[int, int] = {}
        self.choices = {}
        for key, stored in self.stored.items():
            operands = self._operands(stored, changing, loops)
            depth = 1 + max((depths[o] for o in operands or ()), default=0)
            if depth > self.max_ops:
                operands = None
            depths[key] = 0 if operands is None else depth
            banned = key in changing or key in gathered
            cost = None if banned else self._cost(stored, operands is not None, loops)
            self.choices[key] = Choice(cost, operands)

    def wanted(self) -> list[int]:
        """What backward reads and could compute again, where saving it costs anything."""
        can = [(key, self.choices[key]) for key, s in self.stored.items() if s.late]
        return [key for key, choice in can if choice.operands is not None and choice.cost]

    def only_of_what_is_there(self) -> dict[Hashable, Choice]:
        """The choices, without saving anything that is not saved already."""
        kept = {key for key, stored in self.stored.items() if stored.late}
        return {
            key: choice if key in kept or choice.cost == 0 else Choice(None, choice.operands)
            for key, choice in self.choices.items()
        }

    def _operands(
        self, stored: Stored, changing: set[int], loops: dict[fx.Node, Loop]
    ) -> tuple[int, ...] | None:
        maker = stored.maker
        if stored.held or stored.key in changing or not is_cheap(maker, redraw=self.redraw):
            return None
        if stored.key != next(iter(storages_of(maker))):
            return None  # a norm's mean and deviation, which are small
        if not all(_is_made_with(member, maker) for member in stored.members[1:]):
            return None
        if _leaves_loop(stored, loops):
            return None
        read = (key for source in maker.all_input_nodes for key in storages_of(source))
        return tuple(dict.fromkeys(read))

    def _cost(self, stored: Stored, again: bool, loops: dict[fx.Node, Loop]) -> int | None:
        if self.program.level == 1 and not stored.late and _callers(stored):
            return None
        there = stored.is_input or stored.held or (stored.late and not again)
        if there or stored.size < self.smallest or _leaves_loop(stored, loops):
            return 0
        return stored.size


def _is_made_with(member: fx.Node, maker: fx.Node) -> bool:
    """Whether ``member`` is had from what ``maker`` gives by looking at it."""
    item = member.target is operator.getitem and member.args[0] is maker
    return item or viewed_by(member) is not None


def _leaves_loop(stored: Stored, loops: dict[fx.Node, Loop]) -> bool:
    """Whether a loop uses a value from before it, which then lives until the loop has ended."""
    home = loops.get(stored.maker)
    users = [user for member in stored.members for user in (member, *member.users)]
    return any(loops.get(user) is not home for user in users)


def _callers(stored: Stored) -> bool:
    """Whether the caller has a hand on it between forward and backward."""
    if stored.maker.op != "placeholder":
        return stored.returned
    return input_of(stored.maker).kind not in ("param", "state", "symbol")


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
