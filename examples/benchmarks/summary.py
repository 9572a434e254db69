"""From the figures of all ranks to one row for each system."""

import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import mean, median
from typing import Any

import torch
from catalogue import BASELINE
from systems_torch import ALONE
from systems_zc import is_rounded

LOSS_TOLERANCE = 1e-4  # relative; compiled kernels and other collectives add in other orders
ROUNDED_TOLERANCE = 2e-2  # where parameters or moments are kept in bf16 or 8 bits
Ranks = list[dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """One system; ``None`` for what was not measured. ``train_step.py`` explains each figure.

    ``ratios`` are those of its step to the baseline's, one for each start of the processes.
    """

    system: str
    step_seconds: float
    ratios: list[float]
    cpu_seconds: float
    sent_bytes: float | None
    metered_bytes: float | None
    loss_deviation: float | None
    peak_bytes: int | None = None
    resident_bytes: int | None = None
    calls: int | None = None
    cold_seconds: float | None = None
    warm_seconds: float | None = None
    wire_seconds: float | None = None


def rows_of(
    starts: list[Ranks], names: list[str], alone: Mapping[str, Mapping[str, Any]]
) -> list[Row]:
    """One row for each system that shared processes with the baseline; medians over the starts.

    Args:
        starts: for each start of the processes, for each rank, the figures of ``rounds.py``, the
            baseline's among them.
        names: the systems, in the order of the rows.
        alone: what ``start_figures`` gives, by system.
    """
    baseline = [_slowest(ranks, BASELINE, "seconds") for ranks in starts]
    rows = []
    for name in names:
        seconds = [_slowest(ranks, name, "seconds") for ranks in starts]
        row = Row(
            system=name,
            step_seconds=median(seconds),
            ratios=[ours / theirs for ours, theirs in zip(seconds, baseline, strict=True)],
            cpu_seconds=median(_mean_of_medians(ranks, name, "cpu_seconds") for ranks in starts),
            sent_bytes=_median(_mean_of_medians(ranks, name, "sent") for ranks in starts),
            metered_bytes=_median(_mean_of_medians(ranks, name, "metered") for ranks in starts),
            loss_deviation=None if name.startswith(ALONE) else _deviation(starts, name),
            wire_seconds=_median(_slowest(ranks, name, "wire_seconds") for ranks in starts),
            **alone.get(name, {}),
        )
        rows.append(row)
    return rows


def start_figures(cold: Ranks, warm: Ranks | None) -> dict[str, Any]:
    """The figures of a system alone: the slowest or largest of its ranks.

    Args:
        cold: for each rank what ``alone.py`` returned with empty caches.
        warm: with filled caches; ``None`` where nothing is cached.
    """
    last = warm or cold
    return {
        "cold_seconds": max(rank["start"] for rank in cold),
        "warm_seconds": max(rank["start"] for rank in warm) if warm else None,
        "peak_bytes": max(rank["peak"] for rank in last),
        "resident_bytes": max(rank["resident"] or 0 for rank in last) or None,
        "calls": max(rank["calls"] for rank in last),
    }


def loss_line(rows: list[Row]) -> str:
    """Whether every system computes the losses of the baseline."""
    verdict = "agree" if losses_agree(rows) else "DIFFER"
    found = []
    for tolerance in (LOSS_TOLERANCE, ROUNDED_TOLERANCE):
        kind = [row for row in rows if tolerance_of(row) == tolerance]
        if kind:
            worst = max(kind, key=lambda row: row.loss_deviation or 0.0)
            deviation = f"{worst.loss_deviation or 0.0:.1e}"
            found.append(f"{deviation} ({worst.system}), tolerance {tolerance:.0e}")
    return f"losses {verdict}: largest relative difference from {BASELINE} {'; '.join(found)}"


def losses_agree(rows: list[Row]) -> bool:
    """Whether every loss of every rank is within the tolerance of the baseline's."""
    return all((row.loss_deviation or 0.0) <= tolerance_of(row) for row in rows)


def tolerance_of(row: Row) -> float:
    """How far the losses of a system may be from the baseline's, relatively."""
    return ROUNDED_TOLERANCE if is_rounded(row.system) else LOSS_TOLERANCE


def settings_of(args: Any, cores: int) -> dict[str, Any]:
    """What the figures depend on."""
    keys = ("ranks", "link", "executor", "starts", "rounds", "rows", "length")
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": cores,
        **{key: getattr(args, key) for key in keys},
        **asdict(args.config),
        "parameters": args.parameters,
    }


def _slowest(ranks: Ranks, name: str, key: str) -> float:
    """Median over rounds of what the slowest rank took; 0 where it was not measured."""
    rounds = [max(values) for values in zip(*(rank[name][key] for rank in ranks), strict=True)]
    return median(rounds) if rounds else 0.0


def _mean_of_medians(ranks: Ranks, name: str, key: str) -> float:
    values = [rank[name][key] for rank in ranks]
    return mean(map(median, values)) if all(values) else 0.0


def _median(values: Iterable[float]) -> float | None:
    """Their median, or ``None`` for 0, which stands for what was not measured."""
    return median(values) or None


def _deviation(starts: list[Ranks], name: str) -> float:
    return max(
        abs(ours - theirs) / abs(theirs)
        for ranks in starts
        for rank in ranks
        for ours, theirs in zip(rank[name]["losses"], rank[BASELINE]["losses"], strict=True)
    )
