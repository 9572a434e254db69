"""From measured times to the few numbers of a device file: pure functions.

fit_link([(4096, 2.1e-4), (1 << 20, 9.0e-4)])       # seconds = latency + bytes / bandwidth
"""

from collections.abc import Mapping, Sequence
from statistics import median

from zc.cost.device import Link

Samples = Sequence[tuple[float, float]]  # size, seconds


def fit_link(samples: Samples) -> Link:
    """The line ``latency + size / bandwidth`` nearest to ``samples`` in relative terms.

    Least squares of ``predicted / measured - 1``: a few microseconds of a small message count as
    much as some milliseconds of a large one. Neither number becomes negative.

    Args:
        samples: sizes (bytes, or operations) with seconds above zero, of two sizes at least.
    """
    ones = sum(1 / t**2 for _, t in samples)
    sizes = sum(n / t**2 for n, t in samples)
    squares = sum((n / t) ** 2 for n, t in samples)
    constant, slope = sum(1 / t for _, t in samples), sum(n / t for n, t in samples)
    determinant = ones * squares - sizes**2
    latency = (constant * squares - slope * sizes) / determinant
    pace = (ones * slope - sizes * constant) / determinant
    if latency < 0:
        return Link(0.0, squares / slope)
    if pace <= 0:  # no slower with size: as fast as the largest was
        size, seconds = max(samples)
        return Link(constant / ones, size / seconds)
    return Link(latency, 1 / pace)


def two_rates(samples: Samples) -> tuple[float, float, float]:
    """The largest size that caches hold, the rate of what they hold, and that of memory.

    Args:
        samples: bytes and seconds, fixed time taken off; the smallest fits into caches and the
            largest does not, where there are caches at all.
    """
    rates = {n: n / t for n, t in samples}
    inside, outside = rates[min(rates)], rates[max(rates)]
    if inside <= outside:
        return 0.0, outside, outside
    held = [n for n, rate in rates.items() if rate >= (inside * outside) ** 0.5]
    return max(held), median(rates[n] for n in held), outside


def interference(alone: float, transfer: float, together: float) -> float:
    """Share of its speed that compute loses beside a transfer, from 0 to 1.

    Args:
        alone: seconds of the compute by itself, at least ``transfer``.
        transfer: seconds of the transfer by itself.
        together: seconds until both are done when they start together: ``alone`` if the transfer
            costs nothing, the sum if nothing overlaps.
    """
    return min(1.0, max(0.0, (together - alone) / transfer))


def shares_a_lane(first: float, second: float, together: float) -> bool:
    """Whether two transfers run in turn: ``together`` is nearer to their sum than to the longer."""
    return together > max(first, second) + min(first, second) / 2


def slowest(ranks: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """By name, the largest figure of those ranks that measured it: a step ends with the slowest."""
    names = dict.fromkeys(name for rank in ranks for name in rank)
    return {name: max(rank[name] for rank in ranks if name in rank) for name in names}
