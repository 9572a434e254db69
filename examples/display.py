"""What the demo shows: a progress bar, a table, the loss curve."""

import math
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

WIDTH = 28  # of the progress bar, in characters
SECONDS_BETWEEN_LINES = 15.0  # where output is no terminal
LABEL_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
BLOCKS = " ▁▂▃▄▅▆▇█"
TEXT_CURVE_COLUMNS, TEXT_CURVE_ROWS = 72, 10

Point = tuple[float, float]


class ProgressBar:
    """One line that is redrawn; on anything but a terminal, a new line now and then."""

    def __init__(self, total: int):
        self.total = total
        self._started = self._shown = time.monotonic()
        self._terminal = sys.stdout.isatty()

    def update(self, done: int, note: str) -> None:
        """Show that ``done`` of ``total`` steps are done, and ``note``."""
        now = time.monotonic()
        if not self._terminal and now - self._shown < SECONDS_BETWEEN_LINES and done < self.total:
            return
        self._shown = now
        line = self._line(done, f"{done}/{self.total}  {note}  {clock(now - self._started)}")
        if self._terminal:
            print(f"\r\033[K{line}", end="", flush=True)
        else:
            print(line, flush=True)

    def _line(self, done: int, text: str) -> str:
        """The bar and ``text``; in a narrow terminal the bar gives way first."""
        columns = shutil.get_terminal_size().columns - 1 if self._terminal else 10_000
        width = max(0, min(WIDTH, columns - len(text) - 6))
        filled = round(width * done / self.total)
        bar = "━" * filled + " " * (width - filled)
        return f"{done / self.total:4.0%} {bar} {text}"[:columns]

    def say(self, text: str) -> None:
        """Print ``text`` above the bar."""
        print(f"\r\033[K{text}" if self._terminal else text, flush=True)

    def close(self) -> None:
        """Leave the bar as it is and go to the next line."""
        if self._terminal:
            print(flush=True)


def clock(seconds: float) -> str:
    """``1:05`` for 65 seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def megabytes(count: float) -> str:
    """``42.9 MB`` for 42,900,480 bytes."""
    return f"{count / 1e6:,.1f} MB"


def printable(text: bytes) -> str:
    """``text`` with a dot for everything that would upset a terminal."""
    characters = text.decode(errors="replace").replace("\ufffd", "·").expandtabs()
    return "".join(c if c.isprintable() or c == "\n" else "·" for c in characters)


def indent(text: str) -> str:
    """``text`` with a bar before each line."""
    return "\n".join(f"  │ {line}" for line in text.splitlines())


def table(rows: Sequence[Sequence[str]]) -> str:
    """``rows`` in columns, the first to the left, others to the right; a rule under the head."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = []
    for name, *cells in rows:
        right = "".join(f"   {cell:>{w}}" for cell, w in zip(cells, others, strict=True))
        lines.append(f"  {name:<{first}}{right}")
    return "\n".join([lines[0], "  " + "─" * (len(lines[0]) - 2), *lines[1:]])


def draw_curve(
    path: Path, title: str, training: list[Point], validation: list[Point]
) -> Path | None:
    """Draw losses over tokens seen into ``path``; ``None`` where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes.plot(*zip(*training, strict=True), color="#9ec1e8", linewidth=1)
    axes.plot(*zip(*smooth(training), strict=True), color="#1f5fa8", linewidth=2)
    axes.plot(*zip(*validation, strict=True), "o", color="#d1495b", markersize=6)
    axes.set_title(title, loc="left", fontsize=12)
    _write_labels(axes, training, validation)
    figure.savefig(path)
    pyplot.close(figure)
    return path


def _write_labels(axes, training: list[Point], validation: list[Point]) -> None:
    axes.set_xlabel("tokens seen (thousands)")
    axes.set_ylabel("loss (nats per byte)")
    axes.grid(axis="y", color="#e6e6e6")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.margins(x=0.01)
    axes.set_ylim(bottom=0)
    middle, end = smooth(training)[len(training) // 3], validation[-1]
    style = {"textcoords": "offset points", "bbox": LABEL_BOX}
    axes.annotate("training", middle, (0, 24), color="#1f5fa8", ha="center", **style)
    text = f"validation {end[1]:.2f}"
    axes.annotate(text, end, (0, -34), color="#d1495b", ha="right", **style)


def smooth(points: list[Point], keep: float = 0.9) -> list[Point]:
    """Moving average with exponential weights; the start is not drawn towards zero."""
    smoothed, total, weight = [], 0.0, 0.0
    for x, y in points:
        total = keep * total + y
        weight = keep * weight + 1
        smoothed.append((x, total / weight))
    return smoothed


def text_curve(points: list[Point]) -> str:
    """The curve in characters, the y axis from zero."""
    step = max(1, math.ceil(len(points) / TEXT_CURVE_COLUMNS))
    heights = [y for _, y in smooth(points)[::step]]
    top = max(heights)
    lines = []
    for row in reversed(range(TEXT_CURVE_ROWS)):
        levels = [h / top * TEXT_CURVE_ROWS - row for h in heights]
        cells = "".join(BLOCKS[round(8 * min(1.0, max(0.0, level)))] for level in levels)
        lines.append(f"  {top * (row + 1) / TEXT_CURVE_ROWS:5.2f} ┤{cells}".rstrip())
    return "\n".join([*lines, "        └" + "─" * len(heights)])
