"""Time over a program: the step as simulated on its device, as figures and as spans of lanes."""

from collections.abc import Sequence

from zc.cost.simulate import simulate
from zc.cost.timeline import Span, Timeline
from zc.debug.schema import LaneSpan, LaneTimeline, Timing
from zc.program.program import Program
from zc.program.stamps import PHASES, stamp_of

FINEST = 1 / 800  # of the step: shorter gaps are closed, so that a drawing stays small


def timing(program: Program, fused: bool) -> Timing | None:
    """Predicted seconds of ``program``; ``None`` without a device."""
    if program.device is None:
        return None
    found = simulate(program, program.device, fused=fused)
    return {
        "seconds": found.seconds,
        "compute": found.compute_seconds,
        "exposed": found.exposed_seconds,
        "phases": {phase: found.phase_seconds.get(phase, 0.0) for phase in PHASES},
        "lanes": dict(sorted(found.lane_seconds.items())),
    }


def lane_timeline(program: Program, fused: bool) -> LaneTimeline | None:
    """What each lane does when; ``None`` without a device."""
    if program.device is None:
        return None
    found: Timeline = simulate(program, program.device, fused=fused)
    spans = merge_spans(found.spans, found.seconds * FINEST)
    return {"device": program.device.name, "seconds": found.seconds, "spans": spans}


def merge_spans(spans: Sequence[Span], gap: float) -> list[LaneSpan]:
    """Neighbours of one lane and phase as one, where no more than ``gap`` seconds lie between."""
    merged: list[LaneSpan] = []
    last: dict[str, LaneSpan] = {}
    for span in spans:
        phase, before = stamp_of(span.node).phase, last.get(span.lane)
        if before and before["phase"] == phase and span.start - before["end"] <= gap:
            before["end"] = span.end
            before["count"] += 1
            continue
        last[span.lane] = {
            "lane": span.lane,
            "start": span.start,
            "end": span.end,
            "phase": phase,
            "node": span.node.name,
            "count": 1,
        }
        merged.append(last[span.lane])
    return sorted(merged, key=lambda span: span["start"])
