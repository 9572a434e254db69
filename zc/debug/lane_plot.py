"""The lane timeline of a report as inline SVG: a row for each lane, a bar for each span."""

from html import escape

from zc.debug.schema import LaneSpan, LaneTimeline
from zc.text import show_count, show_seconds

WIDTH, LEFT, RIGHT, TOP, ROW, BAR = 1000, 70, 14, 10, 34, 22
_TICKS = 5
_NARROWEST = 0.5  # of a bar, so that it can be seen
_ORDER = ("compute", "gather", "reduce", "copy", "file")


def lane_plot(timeline: LaneTimeline | None) -> str:
    """SVG of the lanes; a sentence for a program that takes no time or has no device."""
    if timeline is None or not timeline["spans"]:
        return "<p>No time is predicted for this program.</p>"
    used = {span["lane"] for span in timeline["spans"]}
    lanes = [lane for lane in _ORDER if lane in used]
    bottom = TOP + ROW * len(lanes)
    parts = [
        f'<svg id="lanes" viewBox="0 0 {WIDTH} {bottom + 30}" role="img" '
        f'aria-label="lanes over the step">',
        *_axis(timeline["seconds"], bottom),
        *(_name(lane, row) for row, lane in enumerate(lanes)),
        *(_bar(span, lanes.index(span["lane"]), timeline["seconds"]) for span in timeline["spans"]),
        "</svg>",
    ]
    return "\n".join(parts)


def _x(seconds: float, end: float) -> float:
    return round(LEFT + (WIDTH - LEFT - RIGHT) * seconds / end, 2)


def _axis(end: float, bottom: int) -> list[str]:
    lines = []
    for tick in range(_TICKS + 1):
        x = _x(end * tick / _TICKS, end)
        anchor = "end" if tick == _TICKS else "middle"
        text = show_seconds(end * tick / _TICKS)
        lines.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{TOP}" y2="{bottom}"/>')
        lines.append(f'<text class="axis" x="{x}" y="{bottom + 18}" text-anchor="{anchor}">{text}')
        lines[-1] += "</text>"
    return lines


def _name(lane: str, row: int) -> str:
    y = TOP + ROW * row + ROW // 2 + 4
    return f'<text class="tick" x="{LEFT - 8}" y="{y}" text-anchor="end">{escape(lane)}</text>'


def _bar(span: LaneSpan, row: int, end: float) -> str:
    x, y = _x(span["start"], end), TOP + ROW * row + (ROW - BAR) // 2
    width = max(round(_x(span["end"], end) - x, 2), _NARROWEST)
    took = show_seconds(span["end"] - span["start"])
    about = f"%{span['node']}, {show_count(span['count'], 'node')}, {span['phase']}, {took}"
    return (
        f'<rect class="{escape(span["phase"])}" x="{x}" y="{y}" width="{width}" height="{BAR}">'
        f"<title>{escape(about)}</title></rect>"
    )
