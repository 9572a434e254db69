"""Memory: predicted peak bytes stay within the program's cap."""

from zc.errors import CapError
from zc.program.liveness import largest_live, memory_timeline
from zc.program.program import Program
from zc.verify.diagnostic import refusal


def check(program: Program) -> None:
    """Refuse a program with a cap whose predicted peak is above it.

    Raises:
        CapError: naming the node at the peak and the five largest values live there.
    """
    if program.cap_bytes is None:
        return
    for graph in program.graphs.values():
        timeline = memory_timeline(graph, fused=program.fused)
        peak = max(timeline, key=lambda point: point.live_bytes, default=None)
        if peak is None or peak.live_bytes <= program.cap_bytes:
            continue
        live = largest_live(graph, peak.node, fused=program.fused)
        largest = ", ".join(f"%{node.name} {size}" for node, size in live)
        raise refusal(
            program,
            peak.node,
            f"{peak.live_bytes} bytes are live at %{peak.node.name}, the cap "
            f"is {program.cap_bytes}",
            f"largest values, in bytes: {largest}; recompute or offload them, or raise the cap",
            CapError,
        )
