"""A region returns tensors: items of a tuple are taken in the region that makes the tuple."""

import operator

import torch
import torch.nn.functional as F
from torch import fx
from tracing import physical, program_of

from zc.program.nodes import value_of
from zc.run.regions import Region, split_regions

PARAMS = {"w": (4, 16), "scale": (16,), "shift": (16,)}


def loss(p: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
    return F.layer_norm(x["x"] @ p["w"], (16,), p["scale"], p["shift"]).square().sum()


def test_items_stay_with_their_tuple():
    graph = physical(program_of(loss, PARAMS, {"x": (2, 4)})).graph
    computed = graph.find_nodes(op="call_function", target=operator.getitem)
    (item,) = [n for n in computed if any("shift" in user.name for user in n.users)]
    for node in (item, *_readers(item)):  # a pass may delay a reduction behind everything else
        graph.output_node().prepend(node)
    parts = split_regions(graph)
    returned = [n for part in parts if isinstance(part, Region) for n in part.outputs]
    assert all(isinstance(value_of(n), torch.Tensor) for n in returned)
    nodes = [n for part in parts for n in (part.nodes if isinstance(part, Region) else [part])]
    assert len(nodes) == len(set(nodes))
    assert set(nodes) == {n for n in graph.nodes if n.op == "call_function"}


def _readers(node: fx.Node) -> list[fx.Node]:
    found = [node]
    for value in found:  # grows meanwhile
        found += [user for user in value.users if user.op == "call_function"]
    return found[1:]
