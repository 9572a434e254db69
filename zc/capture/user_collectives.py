"""Collectives that the user's own code brings (``clip_grad_norm_`` on DTensors, for one).

Traced code names process groups, which differ from run to run; a program names mesh axes.
"""

from torch import fx

from zc.comm.groups import axis_of_group
from zc.errors import CaptureError
from zc.program.collectives import COLLECTIVES, is_collective
from zc.program.printer import print_node
from zc.program.program import Program
from zc.program.stamps import restamp, stamp_of


def adopt(program: Program) -> None:
    """Name the axis in place of the group in every captured collective, and stamp it ``user``.

    Raises:
        CaptureError: for a collective over ranks that no mesh axis consists of.
    """
    for node in program.graph.nodes:
        if is_collective(node):
            _rename(node)
            restamp(node, user=True)


def _rename(node: fx.Node) -> None:
    position = COLLECTIVES[node.target].axis_arg
    group = str(node.args[position])
    axis = axis_of_group(group)
    if axis is None:
        raise CaptureError(
            f"{print_node(node)} ({stamp_of(node).source or 'no source line'}) runs over process "
            f"group '{group}', which is no mesh axis of this program; communicate over the mesh "
            f"that zc.shard was given, or outside the compiled function"
        )
    node.update_arg(position, axis)
