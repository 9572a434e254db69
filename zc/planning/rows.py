"""What ``zc plan`` says about one pass pipeline on so many ranks."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A line of the plan; times and bytes are of one rank and step.

    Attributes:
        world: ranks.
        pipeline: name of the pass pipeline.
        peak_bytes: predicted.
        step_seconds: predicted, as the pass pipeline orders it.
        best_seconds: what no order of the same work is faster than.
        exposed_seconds: in which compute stands still for a collective.
        sent_bytes: over all collectives.
        kinds: what the peak consists of, as text, largest first.
        where: at which node the peak is; empty for a formula.
        refused: why the pass pipeline does not suit the model; empty where it does.
    """

    world: int
    pipeline: str
    peak_bytes: int = 0
    step_seconds: float = 0.0
    best_seconds: float = 0.0
    exposed_seconds: float = 0.0
    sent_bytes: int = 0
    kinds: tuple[str, ...] = ()
    where: str = ""
    refused: str = ""

    def fits(self, cap: int) -> bool:
        """Whether the peak is within ``cap`` bytes."""
        return not self.refused and self.peak_bytes <= cap


def ranked(rows: Iterable[Row], cap: int) -> list[Row]:
    """By ranks; what fits comes first, the fastest first, then what needs least memory."""

    def key(row: Row) -> tuple[int, bool, bool, float, int]:
        fits = row.fits(cap)
        return row.world, not fits, bool(row.refused), row.step_seconds * fits, row.peak_bytes

    return sorted(rows, key=key)
