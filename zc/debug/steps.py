"""The passes of a report page: one card for each, with figures and a coloured diff."""

from collections.abc import Callable
from dataclasses import dataclass
from html import escape

from zc.debug.schema import PassReport, Timing
from zc.text import show_bytes, show_seconds

DIFF_LINES = 1500  # lines of one diff in the page; the file has all
OPS_SHOWN = 12
Show = Callable[[float], str]
Figure = tuple[str, float, float | None, Show]
_CLASSES = {"+": "add", "-": "del", "@": "hunk"}


@dataclass(frozen=True)
class Change:
    """What a pass that changed something left behind: the stem of its files, diff and drawing."""

    stem: str
    diff: str
    svg: str | None = None


def pass_steps(passes: list[PassReport], changes: dict[int, Change]) -> str:
    """All cards, from capture to the last pass."""
    previous = [None, *passes]
    cards = [
        _card(step, before, changes.get(step["index"]))
        for before, step in zip(previous, passes, strict=False)
    ]
    return f'<ol class="steps">\n{"".join(cards)}</ol>\n'


def _card(step: PassReport, before: PassReport | None, change: Change | None) -> str:
    options = ", ".join(f"{name}: {value}" for name, value in step["options"].items())
    state = "" if step["changed"] else '<span class="soft">changed nothing</span>'
    took = "" if before is None else f'<span class="soft">{step["milliseconds"]:.1f} ms</span>'
    body = "".join(f'<p class="soft">{escape(note)}</p>\n' for note in step["notes"])
    body += _figures(step, before) if step["changed"] else ""
    if change is not None:
        body += _op_changes(step, before) + diff_details(change)
    return (
        f'<li class="step{"" if step["changed"] else " same"}"><header>'
        f'<span class="soft mono">{step["index"]:02d}</span>'
        f'<span class="name">{escape(step["name"])}</span>'
        f'<span class="badge">{escape(step["kind"])}</span>'
        f'<code class="soft">{escape(options)}</code>{state}{took}</header>\n{body}</li>\n'
    )


def _figures(step: PassReport, before: PassReport | None) -> str:
    counted: list[Figure] = [
        ("nodes", step["node_count"], before and before["node_count"], _number),
        ("collectives", _count(step), before and _count(before), _number),
        ("payload", _payload(step), before and _payload(before), show_bytes),
    ]
    for phase, peak in step["peak_bytes"].items():
        if peak:
            counted.append(
                (f"peak in {phase}", peak, before and before["peak_bytes"][phase], show_bytes)
            )
    counted += _times(step["timing"], before and before["timing"])
    return f'<div class="figures">{"".join(_figure(*figure) for figure in counted)}</div>\n'


def _times(now: Timing | None, before: Timing | None) -> list[Figure]:
    """The predicted step, and how much of it is exposed communication."""
    if now is None:
        return []
    return [
        ("predicted step", now["seconds"], before and before["seconds"], show_seconds),
        ("exposed", now["exposed"], before and before["exposed"], show_seconds),
    ]


def _figure(label: str, value: float, before: float | None, show: Show) -> str:
    delta = ""
    if before is not None and value != before:
        sign = "+" if value > before else "\u2212"
        delta = f"<em>{sign}{show(abs(value - before))}</em>"
    return f"<div><span>{escape(label)}</span>{show(value)}{delta}</div>"


def _number(value: float) -> str:
    return f"{value:,}"


def _count(step: PassReport) -> int:
    return sum(row["count"] for row in step["collectives"])


def _payload(step: PassReport) -> int:
    return sum(row["payload_bytes"] for row in step["collectives"])


def _op_changes(step: PassReport, before: PassReport | None) -> str:
    old = before["nodes"] if before else {}
    names = sorted({*old, *step["nodes"]})
    deltas = {name: step["nodes"].get(name, 0) - old.get(name, 0) for name in names}
    shown = sorted((n for n in names if deltas[n]), key=lambda n: -abs(deltas[n]))
    words = [f"<code>{deltas[n]:+,} {escape(n)}</code>" for n in shown[:OPS_SHOWN]]
    more = f"and {len(shown) - OPS_SHOWN} more ops" if len(shown) > OPS_SHOWN else ""
    return f'<div class="ops">{"".join(words)}{more}</div>\n' if words else ""


def diff_details(change: Change) -> str:
    """A collapsed diff; a long one is cut, with the name of the file that has all of it."""
    lines = change.diff.splitlines()[2:]
    added = sum(line.startswith("+") for line in lines)
    removed = sum(line.startswith("-") for line in lines)
    rows = [_diff_line(line) for line in lines[:DIFF_LINES]]
    if len(lines) > DIFF_LINES:
        rest, name = f"{len(lines) - DIFF_LINES:,} more lines in ", f"{change.stem}.diff"
        rows.append(f'<div class="more">{rest}<a href="{name}">{name}</a></div>')
    files = f'<a href="{change.stem}.ir">{change.stem}.ir</a>'
    return (
        f"<details><summary>diff: {added:,} lines added, {removed:,} removed</summary>\n"
        f'<div class="diff mono">{"".join(rows)}</div>\n'
        f'<p class="soft">whole: {files}</p></details>\n'
    )


def _diff_line(line: str) -> str:
    kind = _CLASSES.get(line[:1], "")
    return f'<div class="{kind}">{escape(line)}</div>' if kind else f"<div>{escape(line)}</div>"
