"""``index.html`` of a dump directory: one line for each program dumped there."""

import json
from html import escape
from pathlib import Path
from typing import Any

from zc.debug.files import write_text
from zc.debug.page_style import STYLE
from zc.program.stamps import PHASES
from zc.text import show_bytes

_COLUMNS = ("program", "level", "ranks", "parameters", "nodes", "peak", "payload", "passes")


def write_index(directory: Path) -> None:
    """Write ``index.html`` from the reports that lie in folders of ``directory``.

    Raises:
        ZcError: when it cannot be written.
    """
    rows = [row for path in sorted(directory.glob("*/report.json")) for row in _row(path)]
    head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
    body = "\n".join(rows)
    write_text(
        directory / "index.html",
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>zc dumps</title>\n'
        f"<style>{STYLE}</style></head><body><main><h1>Dumped programs</h1>\n"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div></main></body></html>\n",
    )


def _row(path: Path) -> list[str]:
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        cells = _cells(report)
    except (OSError, ValueError, KeyError, TypeError):
        return []  # not a report of ours, or of another version
    folder = escape(path.parent.name)
    link = f'<td><a href="{folder}/report.html">{folder}</a></td>'
    return ["<tr>" + link + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"]


def _cells(report: dict[str, Any]) -> list[str]:
    last = report["passes"][-1]
    traffic = report["totals"]["traffic"]
    return [
        str(report["level"]),
        str(report["world"]),
        f"{report['totals']['parameters']:,}",
        f"{last['node_count']:,}",
        show_bytes(max(last["peak_bytes"].values())),
        show_bytes(sum(traffic[phase]["payload_bytes"] for phase in PHASES)),
        " → ".join(step["name"] for step in report["passes"][1:]),
    ]
