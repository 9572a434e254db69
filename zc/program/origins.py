"""What gathers bring: which values are the same, and what they were made from.

    %w0_16: bf16[4, 8] = aten._to_copy(%w0, dtype=bf16)           values with numbers
    %w0_gather: bf16[8, 8] = c10d.all_gather_into_tensor(%w0_16, 2, "dp")
    %w0_full: bf16[8, 8] = c10d.wait_tensor(%w0_gather)           known by what is gathered

Passes that gather less ask: what was gathered before, and may it be read now?
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch.fx.node import map_arg

from zc.program.analysis import is_random
from zc.program.collectives import start_of, waits_of
from zc.program.effects import is_effect
from zc.program.places import Accesses, Places
from zc.program.storages import storages_of


class Values:
    """Numbers for values made from inputs without effect: equal numbers, equal values."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}
        self._of: dict[fx.Node, int] = {}

    def number(self, node: fx.Node) -> None:
        """Give ``node`` the number of the nodes that do the same."""
        inputs = [self._input(source) for source in node.all_input_nodes]
        if None not in inputs and not is_effect(node) and not is_random(node):
            key = (node.target, *self._described((node.args, node.kwargs)))
            self._of[node] = self._numbers.setdefault(key, len(self._numbers))

    def gathered(self, start: fx.Node) -> Iterator[tuple[fx.Node, Any]]:
        """Each wait for the gather ``start``, and what tells its value from others."""
        operands = start.args[0]
        for wait in waits_of(start):
            item: Any = wait.args[0]
            operand = operands if item is start else operands[item.args[1]]  # type: ignore[index]
            number = self._input(operand)  # type: ignore[arg-type]
            if number is not None:
                yield wait, (number, start.args[1:])

    def _input(self, node: fx.Node) -> int | None:
        if node.op in ("placeholder", "get_attr"):
            return self._numbers.setdefault(node, len(self._numbers))
        return self._of.get(node)

    def _described(self, args: Any) -> tuple[str, ...]:
        return (str(map_arg(args, lambda node: f"%{self._input(node)}")),)


@dataclass(frozen=True)
class Origin:
    """What gathers come from: the number of the first node, and the storages of inputs."""

    first: int
    inputs: frozenset[int]


class Origins:
    """The origins of waits. Those of one bucket have the same, which is looked for once."""

    def __init__(self, places: Places, accesses: Accesses) -> None:
        self.places, self.accesses = places, accesses
        self._known: dict[fx.Node | None, Origin] = {}
        self._writes: dict[Any, list[int]] = {}

    def of(self, wait: fx.Node) -> Origin:
        """The origin of the value of ``wait``."""
        start = start_of(wait)
        if start not in self._known:
            chain = chain_behind(wait)
            sources = {s for node in chain for s in node.all_input_nodes}
            inputs = {k for s in sources if s.op == "placeholder" for k in storages_of(s)}
            first = min(self.places.number[node] for node in chain)
            self._known[start] = Origin(first, frozenset(inputs))
        return self._known[start]

    def last_write(self, waits: tuple[fx.Node, fx.Node], before: int) -> int:
        """The last node before number ``before`` that writes to an input of both; -1 for none."""
        starts = tuple(map(start_of, waits))
        if starts not in self._writes:
            keys = frozenset().union(*(self.of(wait).inputs for wait in waits))
            self._writes[starts] = self.accesses.writes(keys)
        writes = self._writes[starts]
        place = bisect_left(writes, before)
        return writes[place - 1] if place else -1


def chain_behind(wait: fx.Node) -> list[fx.Node]:
    """The computed nodes that the value of ``wait`` comes from."""
    found = {wait: None}
    pending = [wait]
    while pending:
        new = [s for s in pending.pop().all_input_nodes if s not in found]
        found |= dict.fromkeys(new)
        pending += new
    return [node for node in found if node.op == "call_function"]
