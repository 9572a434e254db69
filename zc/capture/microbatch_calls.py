"""Which nodes of a traced graph belong to which call of ``zc.microbatches``."""

from torch import fx

from zc.state.microbatches import JOIN, SPLIT


def micro_batch_of(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """For each node traced inside ``zc.microbatches`` the marker that it stands behind."""
    found: dict[fx.Node, fx.Node] = {}
    current: fx.Node | None = None
    for node in graph.nodes:
        if node.target is JOIN:
            current = None
        if current is not None:
            found[node] = current
        if node.target is SPLIT:
            current = node
    return found
