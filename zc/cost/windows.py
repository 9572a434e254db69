"""When the collectives of one lane may start, and when they must be waited for, within a limit.

Collectives start on their lane in a given order. Each can be moved in a window of places, and for
as long as it is away from where it stands it holds bytes that are not held otherwise.

Starts. ``s[i]`` is where collective i stands, ``p[i] <= s[i]`` where it is to start. Order means
that p never falls, so wherever i is under way, at ``p[i] <= j < s[i]``, so is each earlier one
that has ``s > j``. Memory at j is therefore within the limit exactly when
``live[j] + sum(m[k] for k <= i if s[k] > j) <= limit`` for the last i that is under way: a
condition on i alone, whatever the others do. It gives each i a first place ``a[i]``, and the plans
allowed are all ``p`` that never fall with ``a[i] <= p[i] <= s[i]``. Of these, one is earliest in
every component: ``p[i] = max(a[0..i])``. No start time or end is later under it than under any
other plan (a start is the maximum of when it is issued and when the lane is free, a wait the
maximum of when it is reached and when its collective ends; maxima and sums never fall when
something gets later). So issuing each at the earliest place allowed takes the least time that any
plan with the same order, on one lane, with the same compute and limit takes. This holds where
collectives do not slow compute down and issuing costs no time of its own.

Waits mirror it: delaying each to the last place allowed is best, and one plan is latest in every
component. Only places in ``gaps``, and where a collective stands, are used; the argument is the
same for any set of places.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from zc.program.places import Places
from zc.program.range_max import RangeMax


@dataclass(frozen=True)
class Window:
    """Where one collective may start or be waited for, from place ``first`` to place ``last``.

    A start stands at ``last`` and holds ``nbytes`` more from where it is moved to up to there. A
    wait stands, with what moves along, right before ``first``, and holds ``nbytes`` more from node
    ``held_from`` on, which is the one behind it.
    """

    first: int
    last: int
    nbytes: int
    held_from: int = 0

    def bound(self, place: int) -> int:
        """The last place of the wait before, if this one goes to ``place``, or stays."""
        return place if place > self.first else self.held_from - 1


def earliest(
    windows: Iterable[Window], live: Sequence[int], limit: int, places: Places
) -> list[int]:
    """The first place of each start, in lane order, with live bytes within ``limit``.

    Args:
        windows: in lane order; ``last`` never falls.
        live: bytes at each node as things stand.
        limit: of live bytes; where they are above it already, nothing is added.
        places: says which gaps there are.
    """
    row, found, place = RangeMax(live), [], 0
    for window in windows:
        row.add(place, window.last, window.nbytes)
        place = max(place, window.first)
        blocked = row.last_above(place, window.last, limit)
        place = place if blocked is None else blocked + 1
        place = min(places.gap_from(place), window.last)
        found.append(place)
    return found


def latest(windows: Sequence[Window], live: Sequence[int], limit: int, places: Places) -> list[int]:
    """The last place of each wait, in lane order, with live bytes within ``limit``.

    ``windows`` are in lane order, in which ``first`` and ``held_from`` never fall; the other
    arguments are those of ``earliest``.
    """
    row, found, place = RangeMax(live), [], len(live)
    for window in reversed(windows):
        row.add(window.held_from, place, window.nbytes)
        place = min(place, window.last)
        blocked = row.first_above(window.held_from, place, limit)
        place = place if blocked is None else blocked
        place = max(places.gap_up_to(place), window.first)
        found.append(place)
        place = window.bound(place)
    return found[::-1]
