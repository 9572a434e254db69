"""The plan as text or JSON, the same in every run.

device h100 (80.0 GB a rank), memory cap 80.0 GB

ranks  pipeline  fits  peak     step     at best  exposed  sent
8      zero3     yes   12.1 GB  98.2 ms  80.1 ms  18.1 ms  3.2 GB
8      zero0     no    91.0 GB  ...
       11.0 GB too many at %mm_3: optimizer state 60.0 GB, gradients 15.0 GB, ...
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from zc.cost.symbolic import MEANINGS, ZERO_STAGES, formulas
from zc.planning.rows import Row, ranked
from zc.text import show_bytes, show_seconds

_HEAD = ("ranks", "pipeline", "fits", "peak", "step", "at best", "exposed", "sent")
_GAP = "  "


def plan_text(rows: Sequence[Row], cap: int) -> str:
    """One line for each row, ranked; below those that do not fit, why."""
    ordered = ranked(rows, cap)
    cells = [_HEAD, *(_cells(row, cap) for row in ordered)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [_line(cells[0], widths)]
    for row, texts in zip(ordered, cells[1:], strict=True):
        lines.append(_line(texts, widths))
        if not row.fits(cap):
            lines.append(" " * (widths[0] + len(_GAP)) + why(row, cap))
    return "\n".join(lines) + "\n"


def why(row: Row, cap: int) -> str:
    """Why ``row`` does not fit."""
    if row.refused:
        return row.refused
    at = f" at {row.where}" if row.where else ""
    return f"{show_bytes(row.peak_bytes - cap)} too many{at}: {', '.join(row.kinds)}"


def plan_json(rows: Sequence[Row], cap: int, about: dict[str, Any]) -> str:
    """``about`` and all rows, ranked, each with whether it fits."""
    found = [asdict(row) | {"fits": row.fits(cap)} for row in ranked(rows, cap)]
    return json.dumps(about | {"memory_cap": cap, "rows": found}, indent=1) + "\n"


def state_text(rows: Sequence[Row]) -> str:
    """Model state in GB and volume, by ranks and zero stage, as in Table 1 of the ZeRO paper."""
    cells = [("ranks", *(f"zero{stage}" for stage in ZERO_STAGES), "sent zero0-2", "sent zero3")]
    for world in dict.fromkeys(row.world for row in rows):
        mine = [row for row in rows if row.world == world]
        state = (f"{row.peak_bytes / 1e9:.2f} GB" for row in mine)
        sent = (f"{mine[i].sent_bytes / 1e9:.2f} GB" for i in (0, 3))
        cells.append((str(world), *state, *sent))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(_line(texts, widths) for texts in cells) + "\n"


def formula_text() -> str:
    """The formulas of every zero stage, and what their symbols mean."""
    lines = []
    for found in map(formulas, ZERO_STAGES):
        lines += [
            f"zero{found.zero_stage}",
            f"  model state, bytes    {found.state_bytes}",
            f"  between steps, bytes  {found.rest_bytes}",
            f"  sent, bytes           {found.volume_bytes}",
            f"  operations a byte     {found.intensity}",
            f"  step, seconds         {found.serial_seconds}",
        ]
    return "\n".join([*lines, *(f"{key}: {text}" for key, text in MEANINGS.items())]) + "\n"


def _cells(row: Row, cap: int) -> tuple[str, ...]:
    start = (str(row.world), row.pipeline, "yes" if row.fits(cap) else "no")
    if row.refused:
        return (*start, *["-"] * (len(_HEAD) - len(start)))
    times = (row.step_seconds, row.best_seconds, row.exposed_seconds)
    return (
        *start,
        show_bytes(row.peak_bytes),
        *map(show_seconds, times),
        show_bytes(row.sent_bytes),
    )


def _line(texts: Sequence[str], widths: Sequence[int]) -> str:
    padded = (text.ljust(width) for text, width in zip(texts, widths, strict=True))
    return _GAP.join(padded).rstrip()
