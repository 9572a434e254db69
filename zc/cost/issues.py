"""Where the gathers of a program may start: each with what it reads, in a window of places."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import fx

from zc.cost.lanes import GATHER
from zc.cost.windows import Window
from zc.program.analysis import is_random
from zc.program.collectives import COLLECTIVES, is_collective
from zc.program.effects import is_effect
from zc.program.places import Accesses, Group, Places
from zc.program.storages import storages_of


@dataclass(frozen=True)
class Issue:
    """A collective with what moves along, the start last; ``window`` is where it may start."""

    nodes: tuple[fx.Node, ...]
    window: Window
    gathers: bool

    @property
    def start(self) -> fx.Node:
        """The node that starts it."""
        return self.nodes[-1]

    @property
    def movable(self) -> bool:
        """Whether it may start anywhere else."""
        return self.window.first < self.window.last


def in_order(issues: Sequence[Issue], order: Sequence[int]) -> list[Group]:
    """The nodes to move so that ``issues`` start in ``order``, by number: as late as that allows.

    Only gathers move, so those that do not must keep their order.
    """
    groups: list[Group] = []
    bound = max(issue.window.last for issue in issues)
    for number in reversed(order):
        issue = issues[number]
        bound = max(min(bound, issue.window.last), issue.window.first)
        if issue.movable:
            groups.append((bound, issue.nodes))
    return groups[::-1]


def issues_of(places: Places) -> Iterator[Issue]:
    """All collectives in order; those that are no gathers stay where they are."""
    accesses, light = places.accesses, made_from_inputs(places)
    for number, node in enumerate(places.nodes):
        if not is_collective(node):
            continue
        spec = COLLECTIVES[node.target]
        chain = producers(node, light, places) if spec.op == "all_gather" else (node,)
        window = window_of(chain, places, accesses)
        if spec.op != "all_gather" or window is None:
            chain, window = (node,), Window(number, number, 0)
        yield Issue(chain, window, spec.lane == GATHER)


def made_from_inputs(places: Places) -> set[fx.Node]:
    """Nodes that have no effect and are computed from inputs alone, as a shard's cast is."""
    found: set[fx.Node] = set()
    for node in places.nodes:
        inputs = node.all_input_nodes
        early = all(s.op in ("placeholder", "get_attr") or s in found for s in inputs)
        if early and inputs and not is_effect(node) and not is_random(node):
            found.add(node)
    return found


def producers(start: fx.Node, light: set[fx.Node], places: Places) -> tuple[fx.Node, ...]:
    """``start``, and behind which of the ``light`` nodes only it stands, in order."""
    stretch = places.begins[places.number[start]]
    found, pending = {start}, [start]
    while pending:
        for source in pending.pop().all_input_nodes:
            mine = source in light and found.issuperset(source.users)
            if mine and source not in found and places.begins[places.number[source]] == stretch:
                found.add(source)
                pending.append(source)
    return tuple(sorted(found, key=places.number.__getitem__))


def window_of(chain: Sequence[fx.Node], places: Places, accesses: Accesses) -> Window | None:
    """Where ``chain`` may stand; ``None`` where something writes what it reads in between."""
    last, made = places.number[chain[-1]], set(chain)
    read = {s for node in chain for s in node.all_input_nodes if s not in made}
    keys = {key for source in read for key in storages_of(source)}
    write = accesses.last_write(keys, last)
    if write > places.number[chain[0]]:
        return None
    first = max([places.begins[last], write + 1, *(places.number.get(s, -1) + 1 for s in read)])
    new = {key: size for node in chain for key, size in storages_of(node).items()}
    scratch = COLLECTIVES[chain[-1].target].scratch(chain[-1])
    return Window(first, last, scratch + sum(s for k, s in new.items() if k not in keys))
