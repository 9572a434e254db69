"""When gathers start: as early as memory allows, then as late as costs no time.

Starting each at the first place is the best plan with their order (``zc.cost.windows`` says why);
the last place at which the step takes as long (``zc.cost.slack``) holds less memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from zc.cost.device import Device
from zc.cost.issues import Issue
from zc.cost.slack import Clock, Search
from zc.cost.timeline import Timeline
from zc.cost.trial import Trial
from zc.cost.windows import earliest
from zc.program.places import Group, Places, move
from zc.program.program import Program


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
