"""From the figures of all ranks to one row for each system, and a Markdown table of them."""

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import mean, median
from typing import Any

import torch

HEAD = (
    "system", "step ms", "ratio", "CPU ms", "peak MB", "update MB", "sent MB", "metered MB",
    "first step s", "warm s",
)  # fmt: skip
LOSS_TOLERANCE = 1e-4  # relative; compiled kernels and other collectives add in other orders


@dataclass(frozen=True)
class Row:
    """One system; ``None`` for what was not measured. ``train_step.py`` explains each figure."""

    system: str
    step_seconds: float
    ratio: float
    cpu_seconds: float
    peak_bytes: int
    update_bytes: int
    sent_bytes: float | None
    metered_bytes: float | None
    first_step_seconds: float
    warm_first_step_seconds: float | None
    loss_deviation: float

    def cells(self) -> list[str]:
        """The row as text, in the order of ``HEAD``."""
        return [
            self.system,
            _number(self.step_seconds, 1e3, 1),
            _number(self.ratio, 1, 2),
            _number(self.cpu_seconds, 1e3, 1),
            _number(self.peak_bytes, 1e-6, 1),
            _number(self.update_bytes, 1e-6, 1),
            _number(self.sent_bytes, 1e-6, 2),
            _number(self.metered_bytes, 1e-6, 2),
            _number(self.first_step_seconds, 1, 1),
            _number(self.warm_first_step_seconds, 1, 1),
        ]


def summarize(first: list[dict[str, Any]], second: list[dict[str, Any]], args: Any) -> list[Row]:
    """One row for each system.

    Args:
        first: for each rank the figures of the run with empty caches, which has the timed steps.
        second: those of the run with filled caches, which has the tracked steps; may be ``first``.
        args: the settings of ``train_step.py``.
    """
    baseline = first[0][args.systems[0]]
    slowest = {name: _step_seconds(first, name) for name in args.systems}
    return [
        Row(
            system=name,
            step_seconds=slowest[name],
            ratio=slowest[name] / slowest[args.systems[0]],
            cpu_seconds=mean(median(rank[name]["cpu_seconds"]) for rank in first),
            peak_bytes=max(rank[name]["peak_backward"] for rank in second),
            update_bytes=max(rank[name]["peak_update"] for rank in second),
            sent_bytes=_mean_of_medians(first, name, "sent"),
            metered_bytes=_mean_of_medians(first, name, "metered") or None,
            first_step_seconds=max(rank[name]["first_step"] for rank in first),
            warm_first_step_seconds=_warm(first, second, name),
            loss_deviation=_deviation(first, name, args.systems[0]),
        )
        for name in args.systems
        if baseline["seconds"]
    ]


def markdown(rows: list[Row], settings: Mapping[str, Any]) -> str:
    """A table, what it was measured with, and whether the losses agree."""
    lines = [_line(HEAD), _line(["---", *["---:"] * (len(HEAD) - 1)])]
    lines += [_line(row.cells()) for row in rows]
    measured_with = ", ".join(f"{key} {value}" for key, value in settings.items())
    return "\n".join([*lines, "", measured_with, "", loss_line(rows)])


def loss_line(rows: list[Row]) -> str:
    """Whether every system computes the losses of the first."""
    worst = max(rows, key=lambda row: row.loss_deviation)
    verdict = "agree" if losses_agree(rows) else "DIFFER"
    return (
        f"losses {verdict}: largest relative difference from {rows[0].system} "
        f"{worst.loss_deviation:.1e} ({worst.system}), tolerance {LOSS_TOLERANCE:.0e}"
    )


def losses_agree(rows: list[Row]) -> bool:
    """Whether every loss of every rank is within the tolerance of the first system's."""
    return all(row.loss_deviation <= LOSS_TOLERANCE for row in rows)


def settings_of(args: Any, cores: int) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": cores,
        **{key: getattr(args, key) for key in ("ranks", "executor", "rounds", "rows", "length")},
        **asdict(args.config),
        "parameters": args.parameters,
    }


def _step_seconds(ranks: list[dict[str, Any]], name: str) -> float:
    """Median over rounds of what the slowest rank took."""
    return median(map(max, zip(*(rank[name]["seconds"] for rank in ranks), strict=True)))


def _mean_of_medians(ranks: list[dict[str, Any]], name: str, key: str) -> float | None:
    values = [rank[name][key] for rank in ranks]
    return mean(map(median, values)) if all(values) else None


def _warm(first: list[dict[str, Any]], second: list[dict[str, Any]], name: str) -> float | None:
    return None if second is first else max(rank[name]["first_step"] for rank in second)


def _deviation(ranks: list[dict[str, Any]], name: str, baseline: str) -> float:
    return max(
        abs(ours - theirs) / abs(theirs)
        for rank in ranks
        for ours, theirs in zip(rank[name]["losses"], rank[baseline]["losses"], strict=True)
    )


def _number(value: float | None, factor: float, digits: int) -> str:
    return "-" if value is None else f"{value * factor:,.{digits}f}"


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"
