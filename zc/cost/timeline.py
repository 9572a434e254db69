"""What a simulated step takes, node by node and in all."""

from dataclasses import dataclass, field

from torch import fx


@dataclass(frozen=True)
class Span:
    """``node`` keeps ``lane`` busy from ``start`` to ``end``, in seconds from the step's start."""

    node: fx.Node
    lane: str
    start: float
    end: float


@dataclass
class Timeline:
    """What a simulated step takes.

    Attributes:
        spans: in the order of their nodes; nodes that take no time have none.
        seconds: until the last lane is done.
        compute_seconds: that the compute lane works, undisturbed.
        exposed_seconds: that the compute lane stands still for a collective, or is slowed by one.
        lane_seconds: busy time by lane.
        phase_seconds: time on the compute lane, waits included, by phase.
        ends: when the compute lane is through with each node, in the order in which they run.
        memory: seconds and live bytes, whenever a node ends; empty where nobody asked.
        peak_bytes: largest live bytes; 0 where nobody asked.
    """

    spans: list[Span] = field(default_factory=list)
    seconds: float = 0.0
    compute_seconds: float = 0.0
    exposed_seconds: float = 0.0
    lane_seconds: dict[str, float] = field(default_factory=dict)
    phase_seconds: dict[str, float] = field(default_factory=dict)
    ends: list[float] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)
    peak_bytes: int = 0
