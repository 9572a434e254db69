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
Where a program has a memory cap, limits are halved until it is kept. Where buckets neither shorten
the predicted step nor lower a peak (zc.cost.balance), as where too little is left to overlap a
large one with, collectives stay as they are. What has been decided for the same collectives before
(zc.program.decisions) is done again.

Runs before ``fuse_update``, which then updates a bucket's parameters behind its waits; behind it,
each gradient is needed as soon as it is complete, and reductions are left as they are.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import fx

from zc.cost.balance import Balance, left_alone
from zc.program.copying import copy_program, restore
from zc.program.decisions import decision_key
from zc.program.edit import Editor
from zc.program.gather_buckets import bucket_gathers
from zc.program.liveness import peak_bytes
from zc.program.pass_base import Kind, Pass
from zc.program.program import Program
from zc.program.reduce_buckets import bucket_reductions
from zc.program.units import Bytes


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
        decided, balance = program.decisions.get(key), Balance(program)
        saved = copy_program(program) if decided is None else program
        limits = decided or limits_under_cap(program, self.gather_bytes, self.reduce_bytes)
        said = f"buckets: {coalesce_up_to(program, *limits)}"
        if decided is not None:
            said = f"{said}, as decided before"
        elif balance.helps():
            said = balance.said(said)
        else:
            restore(program, saved)
            limits, said = (0, 0), left_alone("coalescing")
        program.decisions[key] = limits
        program.notes.append(f"{self.name}: {said}")


def limits_under_cap(program: Program, gathers: int, reductions: int) -> tuple[int, ...]:
    """The limits, halved until the program with such buckets stays within its memory cap."""
    if program.cap_bytes is None:
        return gathers, reductions
    while gathers or reductions:
        trial = replace(program, graphs={"step": copy_of(program.graph)})
        coalesce_up_to(trial, gathers, reductions)
        if peak_bytes(trial.graph, fused=program.fused) <= program.cap_bytes:
            break
        gathers, reductions = gathers // 2, reductions // 2
    return gathers, reductions


def copy_of(graph: fx.Graph) -> fx.Graph:
    """A copy with the same types and stamps."""
    copy, env = fx.Graph(), {}
    for node in graph.nodes:
        env[node] = copy.node_copy(node, env.__getitem__)
    return copy


def coalesce_up_to(program: Program, gathers: int, reductions: int) -> int:
    """Make buckets of at most so many bytes; how many there are."""
    edit: Any = Editor(program, program.graph, made_by="bucket_collectives")
    number = bucket_gathers(edit, gathers, 0)
    return bucket_reductions(edit, reductions, number)
