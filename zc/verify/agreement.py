"""Plans agree across ranks: what a program communicates, in order, without its nodes."""

from dataclasses import dataclass

from zc.errors import PlanError
from zc.program.collectives import collectives_of
from zc.program.nodes import tensors_of
from zc.program.printer import print_arg
from zc.program.program import Program

PLAN_REMEDY = (
    "every rank must compile the same function with the same options; "
    "dump both (options={'dump': DIR}) and compare"
)


@dataclass(frozen=True)
class PlanEntry:
    """One collective: what all ranks of a group must do at the same moment.

    ``elements`` is the payload in elements of ``dtype``, ``param`` the parameter it is for, if one;
    ``times`` how often a loop over micro-batches calls it.
    """

    op: str
    axis: str
    dtype: str
    elements: int
    phase: str
    param: str = ""
    times: int = 1

    def __str__(self) -> str:
        subject = f" of '{self.param}'" if self.param else ""
        times = f" {self.times} times" if self.times > 1 else ""
        what = f"{self.phase} {self.op} {self.dtype}[{self.elements}]"
        return f"{what} on {self.axis}{subject}{times}"


def communication_plan(program: Program) -> tuple[PlanEntry, ...]:
    """All collectives of ``program`` in the order in which they start."""
    entries = []
    for row in collectives_of(program):
        (dtype,) = {t.dtype for t in tensors_of(row.node)}
        entries.append(
            PlanEntry(
                row.spec.op,
                row.axis,
                print_arg(dtype),
                row.payload_bytes // dtype.itemsize,
                row.stamp.phase,
                row.stamp.param,
                row.times,
            )
        )
    return tuple(entries)


def check_agreement(plans: list[tuple[PlanEntry, ...]]) -> None:
    """Compare the plans of all ranks with that of rank 0.

    Raises:
        PlanError: naming the first rank and the first entry that differ.
    """
    for rank, plan in enumerate(plans):
        for position in range(max(len(plan), len(plans[0]))):
            mine, first = _entry(plan, position), _entry(plans[0], position)
            if mine != first:
                raise PlanError(
                    f"collective {position} is {mine} on rank {rank} and {first} on rank 0; "
                    f"{PLAN_REMEDY}"
                )


def _entry(plan: tuple[PlanEntry, ...], position: int) -> PlanEntry | str:
    return plan[position] if position < len(plan) else "missing"
