"""Keep parameters gathered from forward to backward where memory has room, and gather them once.

before:  %w0_full: f32[8, 8] = c10d.wait_tensor(%w0_gather)
         %mm: f32[2, 8] = aten.mm(%x, %w0_full)
         -- backward --
         %w0_gather_1: f32[8, 8] = c10d.all_gather_into_tensor(%w0, 4, "dp")
         %w0_full_again: f32[8, 8] = c10d.wait_tensor(%w0_gather_1)
         %t: f32[8, 8] = aten.t(%w0_full_again)
after:   %w0_full: f32[8, 8] = c10d.wait_tensor(%w0_gather)
         %mm: f32[2, 8] = aten.mm(%x, %w0_full)
         -- backward --
         %t: f32[8, 8] = aten.t(%w0_full)

A value kept lives from its last read in forward to the gather that it replaces. Which ones are kept
is solved exactly, as a knapsack problem (``zc.cost.repeats``): the most seconds of gathers in the
bytes that are free at every moment at which they are kept. Nothing else is kept: what is computed
from a gathered value is computed again in backward. A bucket is one gather. The program stays as it
is without a memory limit to fill, and where its predicted time would not fall. What has been
decided for the same collectives before (``zc.program.decisions``) is done again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from zc.cost.device import Device
from zc.cost.repeats import Repeat, choose, repeats_of
from zc.cost.trial import device_of, done_note, idle_note, memory_limit, shorter, step_of
from zc.program.copying import copy_program, restore
from zc.program.decisions import decision_key, starts_of
from zc.program.edit import Editor, erase_dead
from zc.program.liveness import live_bytes
from zc.program.pass_base import Kind, Pass
from zc.program.places import places_in
from zc.program.program import Program
from zc.program.stamps import stamp_of
from zc.program.storages import storages_of
from zc.program.units import Bytes

_TRIES = 3


@dataclass(frozen=True)
class KeepGathered(Pass):
    """Keep what saves the most time of gathers in the bytes that are free.

    These are the pass pipeline's ``memory_cap`` less the predicted peak, or ``memory`` where that
    is given and less. With neither, nothing is kept.
    """

    kind: ClassVar[Kind] = "optional"
    requires: ClassVar[frozenset[str]] = frozenset({"sharded_params"})
    memory: Bytes | None = None  # bytes above the peak that gathered parameters may take

    def run(self, program: Program) -> None:
        """Let backward read what forward has gathered, and erase the gathers that nobody reads.

        Raises:
            PipelineError: for a program without a device.
        """
        program.notes.append(f"{self.name}: {self._kept(program, device_of(program, self.name))}")

    def _kept(self, program: Program, device: Device) -> str:
        if self.memory is None and program.cap_bytes is None:
            return "left alone: there is no memory_cap, and no memory to keep anything in"
        repeats = list(repeats_of(program, device))
        if not repeats:
            return "left alone: nothing is gathered a second time"
        key, starts = decision_key(program, self.name), starts_of(program.graph)
        nodes = places_in(program).nodes
        decided = program.decisions.get(key)
        if decided is not None:
            wanted = {starts[number] for number in decided}
            chosen = [repeat for repeat in repeats if nodes[repeat.start] in wanted]
            keep(program, chosen, self.name)
            return f"{len(chosen)} of {len(repeats)} gathers are not repeated, as decided before"
        chosen, said = self._keep_best(program, device, repeats)
        kept = {nodes[repeat.start] for repeat in chosen}
        program.decisions[key] = tuple(i for i, start in enumerate(starts) if start in kept)
        return said

    def _keep_best(
        self, program: Program, device: Device, repeats: Sequence[Repeat]
    ) -> tuple[list[Repeat], str]:
        """Keep what shortens the step: that, and what to say of it.

        Where nothing does, the program is as it was, of other nodes perhaps.
        """
        live, before = live_bytes(program), step_of(program, device).timeline
        limit = memory_limit(program, max(live), self.memory, 0)
        room = limit
        for _ in range(_TRIES):
            chosen = choose(repeats, live, room)
            if not chosen:
                break
            saved = copy_program(program)
            keep(program, chosen, self.name)
            over = max(live_bytes(program)) - max(limit, *live)
            after = step_of(program, device).timeline if over <= 0 else before
            if shorter(after, before):
                done = f"{len(chosen)} of {len(repeats)} gathers are not repeated"
                return chosen, done_note(done, limit, before, after)
            restore(program, saved)
            if over <= 0:
                break
            room -= over  # regions are others without the gathers, and hold other values
        return [], idle_note("keeping parameters gathered", limit)


def keep(program: Program, repeats: Sequence[Repeat], made_by: str) -> None:
    """Read the earlier values in the place of ``repeats``, whose gathers go."""
    if not repeats:
        return
    graph, params = program.graph, set(program.rules.get("kept_gathered", ()))
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    kept: dict[int, int] = {}
    gone: set[int] = set()
    for wait, earlier in (pair for repeat in repeats for pair in repeat.waits):
        kept[wait] = kept.get(earlier, earlier)
        params.add(stamp_of(nodes[wait]).param)
        gone |= storages_of(nodes[wait]).keys()
        nodes[wait].replace_all_uses_with(nodes[kept[wait]])
    for repeat in repeats:
        erase_dead(graph, [nodes[wait] for wait, _ in repeat.waits])
    edit = Editor(program, graph, made_by)
    for node in graph.nodes:
        if node.op == "call_function" and not gone.isdisjoint(storages_of(node)):
            node.meta["val"] = edit.derive(node)
    program.rules["kept_gathered"] = tuple(name for name in program.params if name in params)
