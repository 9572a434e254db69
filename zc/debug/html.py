"""``report.html``: one self-contained page that shows what the passes made of a program."""

import json
import re
from html import escape

from zc.debug.lane_plot import lane_plot
from zc.debug.page_script import SCRIPT
from zc.debug.page_style import STYLE
from zc.debug.plot import plot
from zc.debug.schema import ParameterRow, Report
from zc.debug.steps import Change, pass_steps
from zc.debug.table import Cell, table
from zc.program.stamps import PHASES
from zc.text import show_bytes, show_count, show_seconds

__all__ = ["Change", "render"]

_SECTIONS = ("passes", "memory", "time", "communication", "drawing", "parameters", "pipeline")


def render(report: Report, changes: dict[int, Change], outline: str) -> str:
    """The page.

    Args:
        report: its figures.
        changes: by number of the pass, what the passes that changed something left behind.
        outline: the program as text, shown where there is no drawing.
    """
    links = "".join(f'<a href="#{name}">{name.capitalize()}</a>' for name in _SECTIONS)
    sections = [
        _section("passes", pass_steps(report["passes"], changes)),
        _section("memory", _memory(report)),
        _section("time", _time(report)),
        _section("communication", _communication(report)),
        _section("drawing", _drawing(changes, outline)),
        _section("parameters", _parameters(report)),
        _section("pipeline", f"<pre>{escape(report['pipeline'])}</pre>"),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report['program'])}</title>\n<style>{STYLE}</style></head>\n"
        f"<body><main>\n{_header(report)}\n<nav>{links}</nav>\n"
        f"{''.join(sections)}</main>\n<script>{SCRIPT}</script></body></html>\n"
    )


def _section(name: str, body: str) -> str:
    return f'<section id="{name}"><h2>{name.capitalize()}</h2>\n{body}</section>\n'


def _header(report: Report) -> str:
    mesh = ", ".join(f"{axis['name']}={axis['size']}" for axis in report["mesh"])
    what = "training" if report["training"] else "inference"
    about = f"level {report['level']} · {what} · {mesh or 'one process'}"
    tiles = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
        for value, label in _tiles(report)
    )
    return (
        f'<div class="soft">zc program</div><h1>{escape(report["program"])}</h1>\n'
        f'<div class="soft">{escape(about)}</div><div class="tiles">{tiles}</div>'
    )


def _tiles(report: Report) -> list[tuple[str, str]]:
    totals, last = report["totals"], report["passes"][-1]
    traffic = totals["traffic"].values()
    payload = sum(t["payload_bytes"] for t in traffic)
    multiple = sum(t["payload_multiple"] for t in traffic)
    passes = show_count(len(report["passes"]) - 1, "pass", "passes")
    seconds = sum(step["milliseconds"] for step in report["passes"]) / 1000
    return [
        (f"{totals['parameters']:,}", "parameters (Ψ)"),
        (show_bytes(totals["rest_bytes"]), "parameters at rest, per rank"),
        (show_bytes(max(last["peak_bytes"].values())), "predicted peak, per rank"),
        (show_bytes(payload), f"payload of collectives, {multiple:.2f} Ψ"),
        (show_bytes(sum(t["wire_bytes"] for t in traffic)), "on the wire, per rank"),
        (f"{last['node_count']:,}", f"nodes, after {passes} in {seconds:.2f} s"),
    ]


def _memory(report: Report) -> str:
    memory = report["memory"]
    used = {point["phase"] for point in memory["points"]}
    legend = "".join(f'<span><i class="{p}"></i>{p}</span>' for p in PHASES if p in used)
    points = json.dumps(memory["points"], separators=(",", ":")).replace("<", "\\u003c")
    chart = (
        f'<div class="card"><div class="legend">{legend}</div><div class="chart">'
        f'{plot(memory)}<div id="tip"></div></div></div>\n'
        f'<script type="application/json" id="points">{points}</script>\n'
    )
    peak = memory["peak"]
    if peak is None:
        return chart
    rows = [
        [Cell(f"%{v['node']}"), Cell(v["kind"]), Cell(v["type"]), _bytes(v["bytes"]),
         Cell(v["phase"]), Cell(v["module"]), Cell(v["source"])]
        for v in peak["values"]
    ]  # fmt: skip
    head = ["value", "made by", "type", "bytes", "phase", "module", "source"]
    title = f"<h3>Largest values live at the peak, %{escape(peak['node'])}</h3>\n"
    return chart + title + table("live", head, rows)


def _time(report: Report) -> str:
    """The step as simulated: when each lane is busy, by phase."""
    timeline, timing = report["timeline"], report["passes"][-1]["timing"]
    if timeline is None or timing is None:
        return lane_plot(timeline)
    used = {span["phase"] for span in timeline["spans"]}
    legend = "".join(f'<span><i class="{p}"></i>{p}</span>' for p in PHASES if p in used)
    phases = ", ".join(f"{p} {show_seconds(s)}" for p, s in timing["phases"].items() if s)
    text = (
        f"predicted for device {timeline['device']}: {show_seconds(timing['seconds'])} a step, of "
        f"which {show_seconds(timing['exposed'])} is exposed communication; {phases}"
    )
    return (
        f'<p>{escape(text)}</p>\n<div class="card"><div class="legend">{legend}</div>'
        f"{lane_plot(timeline)}</div>\n"
    )


def _communication(report: Report) -> str:
    rows = [
        [Cell(r["op"]), Cell(r["phase"]), Cell(r["axis"]), _number(r["group_size"]),
         Cell(r["dtype"]), _number(r["count"]), _bytes(r["payload_bytes"]),
         _bytes(r["wire_bytes"])]
        for r in report["passes"][-1]["collectives"]
    ]  # fmt: skip
    if not rows:
        return "<p>This program has no collectives.</p>"
    sums = [
        f"{phase}: {show_bytes(t['payload_bytes'])} ({t['payload_multiple']:.2f} Ψ)"
        for phase, t in report["totals"]["traffic"].items()
        if t["count"]
    ]
    head = ["op", "phase", "axis", "group size", "dtype", "count", "payload", "wire, per rank"]
    note = "payload in multiples of Ψ counts parameters in compute dtype"
    return f'<p>{"; ".join(sums)} <span class="soft">({note})</span></p>\n' + table(
        "collectives", head, rows
    )


def _drawing(changes: dict[int, Change], outline: str) -> str:
    drawn = [change for _, change in sorted(changes.items()) if change.svg]
    files = ", ".join(f'<a href="{c.stem}.svg">{c.stem}</a>' for c in drawn)
    svg = changes[max(changes)].svg if changes else None
    if svg is None:
        return (
            f'<p class="soft">By phase and module. Install graphviz for a drawing, or open the '
            f".dot files elsewhere.</p>\n<pre>{escape(outline)}</pre>"
        )
    return (
        f'<p class="soft">The finished program; after each pass: {files}.</p>\n'
        f'<div class="drawing">{re.sub(r"^.*?(?=<svg)", "", svg, flags=re.DOTALL)}</div>'
    )


def _parameters(report: Report) -> str:
    totals = report["totals"]
    summary = f"{len(report['parameters']):,} parameters, {show_bytes(totals['full_bytes'])} whole."
    if totals["replicated"]:
        names = ", ".join(totals["replicated"])
        summary += (
            f" Every rank keeps {show_bytes(totals['replicated_bytes'])} whole "
            f"({totals['replicated_share']:.2%}): {names}."
        )
    head = ["name", "shape", "at rest", "compute", "reduce", "layout", "bytes per rank",
            "padding", "also named", "trained"]  # fmt: skip
    rows = [_parameter_cells(row) for row in report["parameters"]]
    return f"<p>{escape(summary)}</p>\n" + table("params", head, rows, searchable=True)


def _parameter_cells(row: ParameterRow) -> list[Cell]:
    layout = [f"{a}: {'replicated' if d is None else d}" for a, d in row["shards"].items()]
    return [
        Cell(row["name"]),
        Cell(str(row["shape"])),
        Cell(row["dtype"]),
        Cell(row["compute_dtype"]),
        Cell(row["reduce_dtype"]),
        Cell(", ".join(layout) or "whole"),
        _bytes(row["rest_bytes"]),
        _bytes(row["padding_bytes"]),
        Cell(", ".join(row["ties"])),
        Cell("yes" if row["trainable"] else "no"),
    ]


def _bytes(count: int) -> Cell:
    return Cell(show_bytes(count), count)


def _number(count: int) -> Cell:
    return Cell(f"{count:,}", count)
