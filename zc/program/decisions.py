"""What passes have decided about communication, so that other compilations can follow it.

Which parameters stay gathered, when a gather starts, which collectives become one and whether an
update moves is decided by memory and time, which depend on the size of a batch; ranks must start
the same collectives in the same order whatever their batches are. So a pass that decides such a
thing notes it in the program, and does what is noted there already: by an earlier compilation of
the function, or by another rank (``zc.agreed``).

A decision is a tuple of numbers: collectives in the order in which the pass found them, limits in
bytes, or 1 and 0 for yes and no.
"""

import hashlib

from torch import fx

from zc.program.collectives import is_collective
from zc.program.nodes import value_of
from zc.program.printer import print_type
from zc.program.program import Program
from zc.program.stamps import stamp_of


def decision_key(program: Program, name: str) -> str:
    """Names a decision of pass ``name`` by the collectives that ``program`` has, in order."""
    lines = (
        f"{stamp_of(node).phase} {node.target} {print_type(value_of(node))}"
        for node in starts_of(program.graph)
    )
    return f"{name} {hashlib.sha256(chr(10).join(lines).encode()).hexdigest()[:16]}"


def starts_of(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that start collectives, in order."""
    return [node for node in graph.nodes if is_collective(node)]
