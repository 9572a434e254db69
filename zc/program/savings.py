"""What saving each storage of forward would cost, and which can be computed again instead."""

import operator
from collections.abc import Hashable
from dataclasses import dataclass, field

from torch import fx

from zc.program.loops import Loop, loop_by_node
from zc.program.min_cut import Choice
from zc.program.nodes import input_of
from zc.program.program import Program
from zc.program.recompute import is_cheap
from zc.program.regathered import Scope, Twins, regathered, scopes_of
from zc.program.saved import Stored, changing_storages, gathered_again, stored_by_forward
from zc.program.stamps import BACKWARD, stamp_of
from zc.program.storages import storages_of
from zc.program.views import viewed_by


@dataclass
class Savings:
    """The choices of a program: what each storage costs, and which can be computed again.

    Not computed again is what takes more than ``max_ops`` in a row, or is used inside a loop that
    it stands before. Not saved are memory that is written to before backward ends and, at level 1,
    what the caller may change before backward runs. Parameters that backward gathers again are not
    saved either; where each turn of backward has them, it takes them from there (``twins``), and
    ``views`` are forward's views of such, to be made again.
    """

    program: Program
    max_ops: int
    smallest: int
    redraw: bool
    stored: dict[int, Stored] = field(init=False)
    choices: dict[Hashable, Choice] = field(init=False)
    twins: Twins = field(init=False)
    views: set[fx.Node] = field(init=False)

    def __post_init__(self) -> None:
        self.stored = stored_by_forward(self.program)
        loops = loop_by_node(self.program.graph)
        changing, gathered = changing_storages(self.program), gathered_again(self.program)
        self.twins, self.views = regathered(self.program.graph, changing), set()
        readers = self._scopes_of_readers()
        depths: dict[int, int] = {}
        self.choices = {}
        for key, stored in self.stored.items():
            operands = self._operands(stored, changing, loops)
            depth = 1 + max((depths[o] for o in operands or ()), default=0)
            if depth > self.max_ops:
                operands = None
            if key in gathered and self._is_there(stored, readers):
                depths[key], self.choices[key] = 0, Choice(0, None)
                continue
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

    def _scopes_of_readers(self) -> set[Scope]:
        """Where backward reads what forward has made."""
        scopes = scopes_of(self.program.graph)
        made = [m for s in self.stored.values() if s.late and not s.is_input for m in s.members]
        late = {user for member in made for user in member.users}
        return {scopes[n] for n in late if n in scopes and stamp_of(n).phase == BACKWARD}

    def _is_there(self, stored: Stored, readers: set[Scope]) -> bool:
        """Whether backward has a gathered parameter's storage of its own wherever it may read it.

        Views that it does not have are noted.
        """
        found = [self.twins.get(scope, {}) for scope in readers]
        views = [m for m in stored.members if not all(m in twins for twins in found)]
        if stored.maker in views or any(viewed_by(view) is None for view in views):
            return False
        self.views.update(views)
        return True

    def _operands(
        self, stored: Stored, changing: set[int], loops: dict[fx.Node, Loop]
    ) -> tuple[int, ...] | None:
        maker = stored.maker
        if stored.held or stored.key in changing or not is_cheap(maker, redraw=self.redraw):
            return None
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
    """Whether a value is had from what ``maker`` gives by looking at it."""
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
