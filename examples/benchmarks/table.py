"""The table of ``train_step.py``, from its rows or from the file it has written.

    python examples/benchmarks/table.py out/benchmarks/train_step.json --into README.md

With ``--into``, the table goes between two lines of that file, which must be there, each once:

    <!-- benchmark -->
    <!-- /benchmark -->
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from summary import Row, loss_line
from systems_torch import FLOOR

BEGIN, END = "<!-- benchmark -->", "<!-- /benchmark -->"
COLUMNS = {  # heading, field of a row, factor, digits
    "CPU ms": ("cpu_seconds", 1e3, 1),
    "peak MB": ("peak_bytes", 1e-6, 1),
    "resident MB": ("resident_bytes", 1e-6, 0),
    "sent MB": ("sent_bytes", 1e-6, 1),
    "calls": ("calls", 1, 0),
    "cold s": ("cold_seconds", 1, 1),
    "warm s": ("warm_seconds", 1, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="print the table of a benchmark's figures")
    parser.add_argument("figures", type=Path, help="the .json file that train_step.py has written")
    parser.add_argument("--into", type=Path, help="write it into this file, between its marks")
    args = parser.parse_args()
    figures = json.loads(args.figures.read_text())
    rows = [Row(**row) for row in figures["systems"]]
    text = markdown(rows, figures["reference"], figures["settings"])
    if args.into is None:
        print(text)
        return
    try:
        args.into.write_text(put_between(args.into.read_text(), text))
    except ValueError as error:
        sys.exit(f"{args.into}: {error}")


def markdown(rows: list[Row], reference: str, settings: Mapping[str, Any]) -> str:
    """A table, what it was measured with, and whether the losses agree.

    Figures in brackets are ratios to those of the row ``reference``; a range is that over starts.
    """
    of = next(row for row in rows if row.system == reference)
    heads = ["system", "step ms", "to DDP", f"to {reference}", *COLUMNS]
    lines = [_line(heads), _line(["---", *["---:"] * (len(heads) - 1)])]
    lines += [_line(_cells(row, of)) for row in rows]
    measured_with = ", ".join(f"{key} {value}" for key, value in settings.items() if value)
    brackets = f"In brackets: ratio to {reference}."
    split = [*gap(rows), ""] if gap(rows) else []
    return "\n".join([*lines, "", f"{brackets} {measured_with}", "", *split, loss_line(rows)])


def gap(rows: list[Row]) -> list[str]:
    """What a step of zc consists of; nothing where that was not measured.

    Compute is the step without communication, compiled, which updates all parameters on each rank;
    wire is what its collectives take alone. The rest is what zc adds, less what overlaps and what a
    sharded update saves.
    """
    floor = next((row.step_seconds for row in rows if row.system == FLOOR), None)
    split = [(row, row.wire_seconds) for row in rows if row.wire_seconds is not None]
    if floor is None or not split:
        return []
    lines = [_line(["system", "step ms", "compute", "wire", "rest"]), _line(["---", *["---:"] * 4])]
    for row, wire in split:
        parts = (row.step_seconds, floor, wire, row.step_seconds - floor - wire)
        lines.append(_line([row.system, *(f"{seconds * 1e3:,.1f}" for seconds in parts)]))
    return lines


def put_between(text: str, block: str) -> str:
    """``text`` with ``block`` in place of what stands between its marks.

    Raises:
        ValueError: where a mark is not there once, or the second stands first.
    """
    for mark in (BEGIN, END):
        if text.count(mark) != 1:
            raise ValueError(f"needs one line '{mark}', has {text.count(mark)}")
    before, rest = text.split(BEGIN)
    if END not in rest:
        raise ValueError(f"has '{END}' before '{BEGIN}'")
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{rest.split(END)[1]}"


def _cells(row: Row, reference: Row) -> list[str]:
    """Steps are compared by way of the baseline, which every system has run beside."""
    pairs = zip(row.ratios, reference.ratios, strict=True)
    return [
        row.system,
        f"{row.step_seconds * 1e3:,.1f}",
        f"{median(row.ratios):.2f}",
        _with_range([ours / theirs for ours, theirs in pairs]),
        *(_cell(row, reference, *column) for column in COLUMNS.values()),
    ]


def _with_range(ratios: list[float]) -> str:
    text = f"{median(ratios):.2f}"
    return f"{text} ({min(ratios):.2f}-{max(ratios):.2f})" if len(ratios) > 1 else text


def _cell(row: Row, reference: Row, field: str, factor: float, digits: int) -> str:
    value, other = getattr(row, field), getattr(reference, field)
    if value is None:
        return "-"
    return f"{value * factor:,.{digits}f}" + (f" ({value / other:.2f})" if other else "")


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
