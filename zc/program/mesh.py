"""A mesh as data: axis names and sizes, never process groups.

Ranks, devices and groups are bound when a program is loaded for execution (``zc.comm.groups``), so
a program for 1,024 ranks is built, verified and printed on a laptop.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mesh:
    """Axis names and sizes, in order; empty on one process without a process group."""

    axes: tuple[tuple[str, int], ...] = ()

    def size(self, axis: str) -> int:
        """Number of ranks along ``axis``; 1 for an axis that this mesh does not have."""
        return dict(self.axes).get(axis, 1)

    def __str__(self) -> str:
        return ", ".join(f"{name}={size}" for name, size in self.axes) or "one process"
