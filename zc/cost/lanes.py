"""Lanes: what a device does at the same time as it computes.

Ops run on the compute lane in program order. A collective is issued where it stands and runs on
the lane of its kind, first come first served; its wait stops the compute lane until it is done.
"""

from torch import fx

from zc.cost.device import Device
from zc.program.collectives import COLLECTIVES, is_collective

COMPUTE, GATHER, REDUCE, COPY, FILE = "compute", "gather", "reduce", "copy", "file"
LANES = (COMPUTE, GATHER, REDUCE, COPY, FILE)


def lane_of(node: fx.Node, device: Device) -> str:
    """The lane that ``node`` keeps busy on ``device``."""
    if not is_collective(node):
        return COMPUTE
    return GATHER if device.one_lane else COLLECTIVES[node.target].lane
