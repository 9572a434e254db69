"""Start gathers earlier, so that they travel while the device computes; waits stay at first use.

before:  %w0_full: f32[8, 8] = c10d.wait_tensor(%w0_gather)
         %mm: f32[2, 8] = aten.mm(%x, %w0_full)
         %w1_gather: f32[8, 8] = c10d.all_gather_into_tensor(%w1, 4, "dp")
         %w1_full: f32[8, 8] = c10d.wait_tensor(%w1_gather)
after:   %w0_full: f32[8, 8] = c10d.wait_tensor(%w0_gather)
         %w1_gather: f32[8, 8] = c10d.all_gather_into_tensor(%w1, 4, "dp")
         %mm: f32[2, 8] = aten.mm(%x, %w0_full)
         %w1_full: f32[8, 8] = c10d.wait_tensor(%w1_gather)

What a gather reads (the shard's cast, views of it) moves with it. Gathers keep their order, start
behind the last write to what they read, and leave neither a loop nor their turn of forward or
backward. Each starts at the first place that memory allows, which is the best plan with that order
(``zc.cost.windows`` says why); then as late as costs no time (``zc.cost.slack``), which holds less
memory. Where gathers and reductions share one lane, starting behind the reductions before them is
tried as well as starting ahead of them. The program stays as it is where its predicted time would
not fall. An order that has been decided for the same collectives before (``zc.program.decisions``)
is taken again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from zc.cost.device import Device
from zc.cost.lanes import GATHER
from zc.cost.simulate import Timeline
from zc.cost.slack import Clock, Search
from zc.cost.trial import Trial, device_of, memory_limit
from zc.cost.windows import Window, earliest
from zc.program.analysis import is_random
from zc.program.collectives import COLLECTIVES, is_collective
from zc.program.decisions import decision_key, starts_of
from zc.program.effects import is_effect
from zc.program.pass_base import Kind, Pass
from zc.program.places import Accesses, Group, Places, move, places_in
from zc.program.program import Program
from zc.program.storages import storages_of
from zc.program.units import Bytes


@dataclass(frozen=True)
class PrefetchGathers(Pass):
    """Start each gather as early as memory allows, then as late as costs no time.

    Live bytes stay within the pass pipeline's ``memory_cap``, and within ``memory`` above the
    predicted peak where that is given. With neither, the largest gather may be added twice.
    """

    kind: ClassVar[Kind] = "optional"
    requires: ClassVar[frozenset[str]] = frozenset({"sharded_params"})
    memory: Bytes | None = None  # bytes above the peak that gathers ahead of time may take

    def run(self, program: Program) -> None:
        """Move the starts of gathers where that shortens the step.

        Raises:
            PipelineError: for a program without a device.
        """
        device = device_of(program, self.name)
        places = places_in(program)
        issues = list(issues_of(places))
        movable = [issue for issue in issues if issue.movable]
        if not movable:
            program.notes.append(f"{self.name}: left alone: there is no gather to move")
            return
        key, starts = decision_key(program, self.name), starts_of(program.graph)
        decided = program.decisions.get(key)
        if decided is not None:
            move(places, in_order(issues, decided))
            program.notes.append(f"{self.name}: gathers start in the order that was decided before")
            return
        trial = Trial(program, device)
        live = trial.live
        largest = max(issue.window.nbytes for issue in movable)
        limit = memory_limit(program, max(live), self.memory, 2 * largest)

        def place(room: int) -> Plan:
            plan = Planner(program, device, places, trial, live, room).best(issues)
            trial.undo()
            move(places, plan.groups())
            return plan

        plan = trial.within(limit, place)
        done = f"{plan.moved()} of {len(movable)} gathers start earlier"
        trial.settle(self.name, done, "starting gathers earlier", limit)
        numbers = {start: number for number, start in enumerate(starts)}
        program.decisions[key] = tuple(numbers[start] for start in starts_of(program.graph))


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


@dataclass(frozen=True)
class Plan:
    """Collectives, the place of each, and the step that they make."""

    issues: Sequence[Issue]
    places: Sequence[int]
    timeline: Timeline

    def groups(self) -> list[Group]:
        """The nodes to move to each place."""
        return [(place, i.nodes) for i, place in zip(self.issues, self.places, strict=True)]

    def moved(self) -> int:
        """How many start elsewhere than they did."""
        pairs = zip(self.issues, self.places, strict=True)
        return sum(place < issue.window.last for issue, place in pairs)


@dataclass(frozen=True)
class Planner:
    """Finds the best plan for a program, whose order ``trial`` keeps."""

    program: Program
    device: Device
    places: Places
    trial: Trial
    live: list[int]
    limit: int

    def best(self, issues: Sequence[Issue]) -> Plan:
        """The plan of the shortest step; nodes are left in the order of one or the other."""
        gathers = [issue for issue in issues if issue.gathers]
        plan = self._both_ends(gathers, issues)
        if not self.device.one_lane:
            return plan
        in_turn = self._both_ends(issues, issues)
        return in_turn if self.trial.shorter(in_turn.timeline, plan.timeline) else plan

    def _both_ends(self, lane: Sequence[Issue], issues: Sequence[Issue]) -> Plan:
        """Start as early as possible, then as late as takes no longer."""
        windows = [issue.window for issue in lane]
        early = self._tried(lane, earliest(windows, self.live, self.limit, self.places))
        late = self._tried(lane, self._held_back(early, issues))
        return early if self.trial.shorter(early.timeline, late.timeline) else late

    def _tried(self, lane: Sequence[Issue], found: Sequence[int]) -> Plan:
        self.trial.undo()
        move(self.places, [(p, issue.nodes) for issue, p in zip(lane, found, strict=True)])
        return Plan(lane, found, self.trial.timeline())

    def _held_back(self, plan: Plan, issues: Sequence[Issue]) -> list[int]:
        """The last place of each start of ``plan`` at which the step takes as long."""
        clock = Clock(self.program, plan.timeline, self.device)
        moved = {node for issue in plan.issues for node in issue.nodes}
        search, due = Search(clock, self.places, moved), clock.latest_starts()
        chosen = {issue.start: p for issue, p in zip(plan.issues, plan.places, strict=True)}
        bound = len(self.places.nodes)
        for place, _, issue in reversed(self._on_lane(plan, issues)):
            if issue.start in chosen and place < min(issue.window.last, bound):
                last = min(issue.window.last, bound)
                place = search.last_in_time(place, last, due[issue.start])
                chosen[issue.start] = place
            bound = place
        return [chosen[issue.start] for issue in plan.issues]

    def _on_lane(self, plan: Plan, issues: Sequence[Issue]) -> list[tuple[int, int, Issue]]:
        """What shares the lane of the gathers, in the order in which ``plan`` starts it."""
        found = [(p, 0, issue) for issue, p in zip(plan.issues, plan.places, strict=True)]
        if self.device.one_lane:
            mine = set(plan.issues)
            found += [(i.window.last, 1, i) for i in issues if i not in mine]
        return sorted(found, key=lambda item: item[:2])


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
