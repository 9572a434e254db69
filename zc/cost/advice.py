"""Why a program is above its memory cap, and what would bring it under, with the price.

The ways are really tried: other pass pipelines run on a copy of the program as captured, and are
simulated on its device. What would take another capture (sharding the model, micro-batches) is an
estimate and says so.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from zc.cost.makeup import ACTIVATIONS, Kind, makeup
from zc.cost.simulate import simulate
from zc.cost.timeline import Timeline
from zc.errors import ZcError
from zc.program.copying import copy_program
from zc.program.liveness import MemoryPoint, memory_timeline
from zc.program.program import Program
from zc.program.stamps import stamp_of

TRIED_UP_TO = 20_000  # nodes as captured; more would keep a user waiting for an error
_TRIED_AT_MOST = 12  # pass pipelines


@dataclass(frozen=True)
class Way:
    """Something to do, and how to do it to a copy of the program as captured."""

    text: str
    run: Callable[[Program], None]


@dataclass(frozen=True)
class Outcome:
    """What a way comes to."""

    text: str
    peak_bytes: int
    seconds: float


def advise(
    logical: Program, physical: Program, ways: Iterable[Way], *, cap: int, fused: bool
) -> str:
    """Lines that follow an error about the cap: what the peak consists of, and ways under it.

    Args:
        logical: the program as captured.
        physical: after its passes, above the cap.
        ways: to try.
        cap: bytes.
        fused: whether regions are compiled.
    """
    point = peak_point(physical)
    kinds = makeup(physical, point)
    lines = [f"  the peak, {stamp_of(point.node).phase}, consists of, in bytes:"]
    lines += [f"    {kind}" for kind in kinds]
    now = outcome("", physical, fused)
    small = sum(len(graph.nodes) for graph in logical.graphs.values()) <= TRIED_UP_TO
    tried = [_try(logical, way, fused) for way in list(ways)[:_TRIED_AT_MOST]] if small else []
    lower = [found for found in tried if found is not None and found.peak_bytes < now.peak_bytes]
    lower.sort(key=lambda found: (found.peak_bytes > cap, found.seconds, found.peak_bytes))
    name = physical.device.name if physical.device else "no device"
    lines.append(f"  ways to lower it, as predicted for device '{name}':")
    lines += [f"    {_line(found, now, cap)}" for found in lower]
    lines += [f"    {text}" for text in estimates(logical, kinds, cap, now.peak_bytes)]
    return "\n".join(lines)


def peak_point(program: Program) -> MemoryPoint:
    """The point of ``program`` with the most live bytes."""
    lines = (memory_timeline(g, fused=program.fused) for g in program.graphs.values())
    return max((point for line in lines for point in line), key=lambda point: point.live_bytes)


def outcome(text: str, program: Program, fused: bool) -> Outcome:
    """The predicted peak and step time of a physical program on its device."""
    assert program.device is not None
    found: Timeline = simulate(program, program.device, fused=fused)
    return Outcome(text, peak_point(program).live_bytes, found.seconds)


def _try(logical: Program, way: Way, fused: bool) -> Outcome | None:
    program = copy_program(logical)
    program.cap_bytes = None
    try:
        way.run(program)
    except ZcError:
        return None  # passes that do not suit this program
    return outcome(way.text, program, fused)


def _line(found: Outcome, now: Outcome, cap: int) -> str:
    verdict = "fits" if found.peak_bytes <= cap else f"{found.peak_bytes - cap} bytes too many"
    milliseconds = (found.seconds - now.seconds) * 1000
    return (
        f"{found.text}: peak {found.peak_bytes} bytes "
        f"({found.peak_bytes - now.peak_bytes:+}), step {found.seconds * 1000:.3f} ms "
        f"({milliseconds:+.3f}); {verdict}"
    )


def estimates(logical: Program, kinds: list[Kind], cap: int, peak: int) -> list[str]:
    """What another capture might save: estimates by formula, each with what it comes to."""
    found = []
    whole = [p for p in logical.params.values() if p.trainable and not p.managed]
    ranks = max((p.layout.world for p in whole if p.layouts), default=1)
    held = sum(kind.nbytes for kind in kinds if kind.name in _SHARDABLE)
    if ranks > 1 and held:
        left = peak - held * (ranks - 1) // ranks
        found.append(
            f"zc.shard(model) and zero3: peak about {left} bytes, estimated as the "
            f"{held} bytes of model state over {ranks} ranks; {_fits(left, cap)}"
        )
    for kind in kinds:
        if kind.name == ACTIVATIONS:
            left = peak - kind.nbytes // 2
            found.append(
                f"zc.microbatches with 2 micro-batches: peak about {left} bytes, estimated as half "
                f"the activations; {_fits(left, cap)}"
            )
    return found


_SHARDABLE = ("parameters at rest", "gradients", "optimizer state")


def _fits(peak: int, cap: int) -> str:
    return "would fit" if peak <= cap else f"{peak - cap} bytes too many"
