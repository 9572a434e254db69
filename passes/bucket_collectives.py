"""Coalesce gathers and reductions into buckets, up to a limit in bytes.

before:  %w0_gather: f32[8, 4] = c10d.all_gather_into_tensor(%w0, 4, "dp")
         %w0_full: f32[8, 4] = c10d.wait_tensor(%w0_gather)
         %mm: f32[2, 8] = aten.mm(%x, %w0_full)
         %w1_gather: f32[8, 8] = c10d.all_gather_into_tensor(%w1, 4, "dp")
         %w1_full: f32[8, 8] = c10d.wait_tensor(%w1_gather)
after:   %w0_gather_bucket = c10d.all_gather_into_tensor_coalesced([%w0, %w1], 4, "dp")
         %w0_gather_item: f32[8, 4] = getitem(%w0_gather_bucket, 0)
         %w1_gather_item: f32[8, 8] = getitem(%w0_gather_bucket, 1)
         %w0_full: f32[8, 4] = c10d.wait_tensor(%w0_gather_item)
         %mm: f32[2, 8] = aten.mm(%x, %w0_full)
         %w1_full: f32[8, 8] = c10d.wait_tensor(%w1_gather_item)

A bucket of gathers starts where its first member started: nothing is gathered earlier than that,
and each wait stays at its first use. A bucket of reductions starts where its last member is
complete. Its waits stand where a result is first needed, or before the next bucket starts if the
two have more than ``reduce_bytes`` together: what a reduction reads lives until its wait.

Nothing is copied on the way in or out: shards of dimension 0 are gathered into their places. Only
order changes, so no result does. Memory grows by what a bucket holds: under stage 3 up to
``gather_bytes`` of parameters that are gathered before they are used, and under stages 0, 2 and 3
up to twice ``reduce_bytes`` of gradients, those of the bucket that fills and of the one under way.
Limits are halved, a few times, until the program keeps its memory cap and the step gets shorter as
it stands and no longer at best, where all overlaps that can (zc.cost.overlapped): a large bucket
spares latencies, and keeps what is first needed from it waiting. Where none of them helps,
collectives stay as they are. What has been decided for the same collectives before
(zc.program.decisions) is done again.

Runs before ``fuse_update``, which then updates a bucket's parameters behind its waits; behind it,
each gradient is needed as soon as it is complete, and reductions are left as they are.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from zc.cost.balance import LEFT_BEFORE
from zc.cost.overlapped import Overlapping
from zc.program.collectives import input_bytes, is_collective, output_bytes
from zc.program.copying import copy_program, restore
from zc.program.decisions import decision_key
from zc.program.edit import Editor
from zc.program.gather_buckets import bucket_gathers
from zc.program.liveness import live_bytes
from zc.program.pass_base import Kind, Pass
from zc.program.program import Program
from zc.program.reduce_buckets import bucket_reductions
from zc.program.units import Bytes

LEFT = (0, 0)  # limits that make no bucket
_TRIES = 12  # at the last one, limits are a two-thousandth of those asked for


@dataclass(frozen=True)
class BucketCollectives(Pass):
    """Many small collectives become few: each costs a latency, whatever it moves.

    25 MB is where PyTorch's DistributedDataParallel cuts buckets of gradients (Li et al., "PyTorch
    Distributed", arXiv:2006.15704, section 5.2): far above what a latency is worth of bandwidth.
    """

    kind: ClassVar[Kind] = "optional"
    requires: ClassVar[frozenset[str]] = frozenset({"sharded_params"})
    gather_bytes: Bytes = Bytes("25MB")  # bytes of full parameters in a bucket; 0 for no buckets
    reduce_bytes: Bytes = Bytes("25MB")  # bytes of whole gradients in a bucket; 0 for no buckets

    def run(self, program: Program) -> None:
        """Rewrite gathers and reductions that stand in one stretch of forward or backward."""
        key = decision_key(program, self.name)
        limits = program.decisions.get(key)
        if limits is None:
            limits, said = coalesced(program, int(self.gather_bytes), int(self.reduce_bytes))
        elif limits == LEFT:
            said = LEFT_BEFORE
        else:
            said = f"buckets: {coalesce_up_to(program, *limits)}, as decided before"
        program.decisions[key] = limits
        program.notes.append(f"{self.name}: {said}")


def coalesced(program: Program, gathers: int, reductions: int) -> tuple[tuple[int, int], str]:
    """Make buckets up to the limits, or to the largest halves of them that help.

    Returns:
        The limits in bytes, and what to say of it.
    """
    limits = within_all(program, gathers, reductions)
    if program.device is None and program.cap_bytes is None:
        return limits, f"buckets: {coalesce_up_to(program, *limits)}"
    balance, cap = Overlapping(program), cap_of(program)
    why = "left alone: there is nothing to coalesce"
    for _ in range(_TRIES):
        saved = copy_program(program)
        count = coalesce_up_to(program, *limits)
        if not count:
            restore(program, saved)
            break
        if cap is not None and max(live_bytes(program)) > cap:
            why = "left alone: coalescing exceeds the memory cap"
        elif balance.helps():
            return limits, balance.said(f"buckets: {count}")
        else:
            why = f"left alone: coalescing {balance.why_not()}"
        restore(program, saved)
        limits = limits[0] // 2, limits[1] // 2
    return LEFT, why


def within_all(program: Program, gathers: int, reductions: int) -> tuple[int, int]:
    """The limits, which need not be larger than all there is."""
    starts = [node for node in program.graph.nodes if is_collective(node)]
    largest = sum(max(input_bytes(start), output_bytes(start)) for start in starts)
    return min(gathers, largest), min(reductions, largest)


def cap_of(program: Program) -> int | None:
    """The memory cap, or the predicted peak where that is above it."""
    cap = program.cap_bytes
    return None if cap is None else max(cap, *live_bytes(program))


def coalesce_up_to(program: Program, gathers: int, reductions: int) -> int:
    """Make buckets of at most so many bytes; how many there are."""
    edit: Any = Editor(program, program.graph, made_by="bucket_collectives")
    number = bucket_gathers(edit, gathers, 0)
    return bucket_reductions(edit, reductions, number)
