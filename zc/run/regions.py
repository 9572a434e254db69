"""Compute regions: what lies between two effects, compiled once per structure.

A region is a maximal run of nodes between two effects (``zc.program.effects``). Regions that print
alike, names aside, share one compiled function.
"""

import hashlib
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import free_symbols
from torch.fx.node import map_arg

from zc.program.effects import is_count, is_effect
from zc.program.loops import BEGIN
from zc.program.nodes import is_view, value_of
from zc.program.printer import print_node
from zc.run.expanded import returned

Symbols = dict[str, fx.Node]  # a symbolic size by name, and the node whose value it is
_SYMBOLIC = (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)


@dataclass(frozen=True)
class Region:
    """Consecutive pure nodes, the values they read from outside and those read from outside."""

    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]


def split_regions(
    graph: fx.Graph, parts: Mapping[fx.Node, int] = MappingProxyType({})
) -> list[Region | fx.Node]:
    """The computed nodes of ``graph`` in order: effects as they are, the rest as regions.

    Nodes that ``parts`` gives different numbers are in different regions.
    """
    found: list[Region | fx.Node] = []
    run: list[fx.Node] = []
    symbols: Symbols = {}
    for node in graph.nodes:
        _bind_symbol(node, symbols)
        if node.op != "call_function":
            continue
        if run and parts.get(node) != parts.get(run[-1]):
            _close(found, run, symbols)
        early = is_count(node) and node.target is not BEGIN
        if early and not set(node.all_input_nodes) & set(run):
            found.append(node)  # sizes are computed before the region that needs them
            continue
        if not is_effect(node):
            run += _with_items(node)
            continue
        _close(found, run, symbols)
        found.append(node)
    _close(found, run, symbols)
    return found


def _with_items(node: fx.Node) -> list[fx.Node]:
    """``node`` and the items of its result: a region returns tensors, never a tuple of them."""
    if node.target is operator.getitem:
        return []  # stands behind its source already
    found = [node]
    for value in found:  # grows meanwhile: an item may be a tuple itself
        found += [u for u in value.users if u.target is operator.getitem]
    return found


def _close(parts: list[Region | fx.Node], run: list[fx.Node], symbols: Symbols) -> None:
    if not run:
        return
    members = set(run)
    read = dict.fromkeys(s for n in run for s in n.all_input_nodes if s not in members)
    needed = {str(s) for n in (*run, *read) for s in _free_symbols(n)}
    sizes = dict.fromkeys(symbols[name] for name in sorted(needed) if name in symbols)
    outputs = [n for n in run if any(u not in members for u in n.users)]
    parts.append(Region(tuple(run), tuple(sizes | read), tuple(outputs)))
    run.clear()


def _bind_symbol(node: fx.Node, symbols: Symbols) -> None:
    """Remember ``node`` when its value is a symbolic size by itself, as ``s0``."""
    value = value_of(node)
    if isinstance(value, torch.SymInt) and value.node.expr.is_symbol:
        symbols.setdefault(str(value.node.expr), node)


def _free_symbols(node: fx.Node) -> set[Any]:
    values = value_of(node)
    items = values if isinstance(values, (tuple, list)) else [values]
    return {s for v in items if isinstance(v, _SYMBOLIC) for s in free_symbols(v)}


def is_symbolic(region: Region) -> bool:
    """Whether sizes in a region are symbols, so that compiling it may set conditions on them."""
    return any(_free_symbols(n) for n in (*region.nodes, *region.inputs))


def free_of_work(region: Region) -> bool:
    """Whether a region only makes views, which no compiler improves on."""
    return all(is_view(n) for n in region.nodes)


def extract(region: Region) -> fx.GraphModule:
    """The region as a graph module of its own, with names that depend on structure alone.

    It returns what ``zc.run.expanded.returned`` says.
    """
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for i, node in enumerate(region.inputs):
        env[node] = graph.placeholder(f"in{i}")
        env[node].meta["val"] = value_of(node)
    for i, node in enumerate(region.nodes):
        args, kwargs = map_arg((node.args, node.kwargs), env.__getitem__)
        copy = graph.create_node("call_function", node.target, args, kwargs, name=f"v{i}")
        copy.meta["val"] = value_of(node)
        env[node] = copy
    graph.output(tuple(env[n] for n in returned(region.outputs, region.inputs)))
    return fx.GraphModule({}, graph)


def structure_key(module: fx.GraphModule) -> str:
    """A digest of ops, constants, shapes, strides, dtypes and torch's settings for arithmetic."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    lines = [f"{deterministic} {torch.get_float32_matmul_precision()} {torch.get_num_threads()}"]
    for node in module.graph.nodes:
        if node.op == "placeholder":
            lines.append(f"{node.name} {_signature(value_of(node))}")
        elif node.op == "call_function":
            lines.append(f"{print_node(node)} {_signature(value_of(node))}")
        else:
            lines.append(str(node.args))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _signature(value: Any) -> str:
    items: Sequence[Any] = value if isinstance(value, (tuple, list)) else [value]
    return "; ".join(
        f"{t.dtype} {tuple(t.shape)} {tuple(t.stride())} {t.device.type} {t.storage_offset()}"
        if isinstance(t, torch.Tensor)
        else str(t)
        for t in items
    )
