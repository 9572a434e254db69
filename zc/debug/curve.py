"""Memory over a program: the curve, its peak, and what is live there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import fx

from zc.program.liveness import MemoryPoint, largest_live, memory_timeline, peak_by_phase
from zc.program.program import Program
from zc.program.stamps import PHASES
from zc.program.storages import storages_of

MAX_POINTS = 2000
LARGEST = 12  # values listed at the peak
T = TypeVar("T")


@dataclass(frozen=True)
class Curve:
    """Live bytes over a program.

    Attributes:
        points: position in program order and live bytes there, thinned out to ``MAX_POINTS``.
        peak: the point with the most live bytes, ``None`` for a program that computes nothing.
        at_peak: the largest storages live there, each with the value that made it, in bytes.
        input_bytes: bytes that the caller holds throughout: inputs and constants.
    """

    points: list[tuple[int, MemoryPoint]]
    peak: tuple[int, MemoryPoint] | None
    at_peak: list[tuple[fx.Node, int]]
    input_bytes: int


def memory_curve(program: Program) -> Curve:
    """The curve of all graphs of ``program``, one behind the other."""
    lines = [memory_timeline(graph, fused=program.fused) for graph in program.graphs.values()]
    points = [point for line in lines for point in line]
    numbered = list(enumerate(points))
    held = {key: size for n in program.nodes() if _held(n) for key, size in storages_of(n).items()}
    if not points:
        return Curve([], None, [], sum(held.values()))
    peak = max(numbered, key=lambda item: item[1].live_bytes)
    thin = decimate(numbered, MAX_POINTS, lambda item: item[1].live_bytes)
    largest = largest_live(peak[1].node.graph, peak[1].node, LARGEST, fused=program.fused)
    return Curve(thin, peak, largest, sum(held.values()))


def peaks_by_phase(program: Program) -> dict[str, int]:
    """Largest live bytes while nodes of each phase run; 0 for a phase without nodes."""
    found = [peak_by_phase(graph, fused=program.fused) for graph in program.graphs.values()]
    return {phase: max((p.get(phase, 0) for p in found), default=0) for phase in PHASES}


def decimate(items: Sequence[T], limit: int, height: Callable[[T], int]) -> list[T]:
    """At most ``limit`` of ``items``, in order: the lowest and the highest of each stretch.

    The highest of all is always kept.
    """
    if len(items) <= limit:
        return list(items)
    stretch = -(-len(items) // (limit // 2))
    kept: list[T] = []
    for start in range(0, len(items), stretch):
        part = range(start, min(start + stretch, len(items)))
        low = min(part, key=lambda i: height(items[i]))
        high = max(part, key=lambda i: height(items[i]))
        kept += [items[i] for i in sorted({low, high})]
    return kept


def _held(node: fx.Node) -> bool:
    return node.op in ("placeholder", "get_attr")
