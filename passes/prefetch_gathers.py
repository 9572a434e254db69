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
(``zc.cost.windows`` says why); then as late as costs no time, which holds less memory. Where
gathers and reductions share one lane, starting behind the reductions before them is tried as well
as starting ahead of them. The program stays as it is where its predicted time would not fall. An
order that has been decided for the same collectives before (``zc.program.decisions``) is taken
again.
"""

from dataclasses import dataclass
from typing import ClassVar

from zc.cost.issues import in_order, issues_of
from zc.cost.planner import Plan, Planner
from zc.cost.trial import Trial, device_of, memory_limit
from zc.program.decisions import decision_key, starts_of
from zc.program.pass_base import Kind, Pass
from zc.program.places import move, places_in
from zc.program.program import Program
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
