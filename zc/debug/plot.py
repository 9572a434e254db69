"""The memory-over-time curve of a report as inline SVG, without any script.

One area for each run of nodes of one phase; the page's script adds the value under the pointer.
"""

from html import escape
from itertools import groupby

from zc.debug.schema import CurvePoint, Memory, Peak
from zc.text import show_bytes

WIDTH, HEIGHT = 1000, 300
LEFT, RIGHT, TOP, BOTTOM = 70, 14, 34, 30


class Scale:
    """From node positions and bytes to coordinates of the drawing."""

    def __init__(self, memory: Memory) -> None:
        points = memory["points"]
        self.top_tick, self.step = _ticks(max(p["bytes"] for p in points))
        self.end = points[-1]["index"] + 1

    def x(self, index: float) -> float:
        """Horizontal place of the node at position ``index``."""
        return round(LEFT + (WIDTH - LEFT - RIGHT) * index / self.end, 2)

    def y(self, count: float) -> float:
        """Vertical place of ``count`` bytes."""
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * count / self.top_tick, 2)


def plot(memory: Memory) -> str:
    """SVG of the curve; a sentence for a program that computes nothing."""
    if memory["peak"] is None:
        return "<p>This program computes nothing.</p>"
    scale = Scale(memory)
    parts = [
        f'<svg id="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" data-left="{LEFT}" '
        f'data-right="{RIGHT}" data-end="{scale.end}" aria-label="live bytes over the program">',
        *_grid(scale),
        *_areas(memory["points"], scale),
        _input_line(memory["input_bytes"], scale),
        _peak_mark(memory["peak"], scale),
        f'<line id="cursor" class="cursor" y1="{TOP}" y2="{HEIGHT - BOTTOM}" x1="-9" x2="-9"/>',
        "</svg>",
    ]
    return "\n".join(parts)


def _ticks(highest: int) -> tuple[int, int]:
    step = 1
    while step * 5 < highest:
        step = step * 5 // 2 if str(step).startswith("2") else step * 2
    return max(step, -(-highest // step) * step), step


def _grid(scale: Scale) -> list[str]:
    lines = []
    for count in range(0, scale.top_tick + 1, scale.step):
        y = scale.y(count)
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        lines.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4}">{show_bytes(count)}</text>')
    middle = (LEFT + WIDTH - RIGHT) // 2
    name = f"node 0 to {scale.end - 1:,}, in program order"
    lines.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 8}">{name}</text>')
    return lines


def _areas(points: list[CurvePoint], scale: Scale) -> list[str]:
    ends = [p["index"] for p in points[1:]] + [scale.end]
    areas = []
    for phase, run in groupby(zip(points, ends, strict=True), key=lambda pair: pair[0]["phase"]):
        steps = [(p, end) for p, end in run]
        start, floor = scale.x(steps[0][0]["index"]), scale.y(0)
        path = [f"M{start} {floor}"]
        for point, end in steps:
            path.append(f"V{scale.y(point['bytes'])}H{scale.x(end)}")
        path.append(f"V{floor}Z")
        areas.append(f'<path class="area {escape(phase)}" d="{"".join(path)}"/>')
    return areas


def _input_line(count: int, scale: Scale) -> str:
    y = scale.y(count)
    text = f"held by the caller: {show_bytes(count)}"
    return (
        f'<line class="held" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
        f'<text class="note" x="{LEFT + 6}" y="{y - 5}">{text}</text>'
    )


def _peak_mark(peak: Peak, scale: Scale) -> str:
    x, y = scale.x(peak["index"] + 0.5), scale.y(peak["live_bytes"])
    left = x < WIDTH / 2
    anchor, shift = ("start", 9) if left else ("end", -9)
    text = escape(f"peak {show_bytes(peak['live_bytes'])} at %{peak['node']} ({peak['op']})")
    return (
        f'<circle class="peak" cx="{x}" cy="{y}" r="4.5"/>'
        f'<text class="peak-text" x="{x + shift}" y="{y - 8}" text-anchor="{anchor}">{text}</text>'
    )
