"""Expanded views that a region returns: compiled code returns what they are views of.

In an expanded view elements stand for several, at a stride of 0. Inductor returns one as a copy, in
a layout of its own, which takes memory and which code compiled for the view refuses. So a region is
compiled to return the values underneath (``returned``), and the views are made again of these, in
no time (``with_views``).
"""

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from zc.program.nodes import is_view, value_of

Compiled = Callable[[list[Any]], Sequence[Any]]


def returned(outputs: Sequence[fx.Node], inputs: Collection[fx.Node]) -> list[fx.Node]:
    """What code with these ``inputs`` returns in place of ``outputs``, each value once."""
    return list(dict.fromkeys(_underneath(node, inputs)[0] for node in outputs))


def with_views(
    function: Compiled, outputs: Sequence[fx.Node], inputs: Sequence[fx.Node]
) -> Compiled:
    """``function``, which returns what ``returned`` says, as one that returns ``outputs``."""
    values = returned(outputs, inputs)
    if values == list(outputs):
        return function
    plans = [_underneath(node, inputs) for node in outputs]
    made = [(values.index(value), views) for value, views in plans]
    sizes = {s for _, views in plans for v in views for s in v.all_input_nodes[1:]}
    places = {node: place for place, node in enumerate(inputs) if node in sizes}

    def run(given: list[Any]) -> list[Any]:
        known = {node: given[place] for node, place in places.items()}
        found = function(given)
        return [_made_of(found[index], views, known) for index, views in made]

    return run


def _underneath(node: fx.Node, inputs: Collection[fx.Node]) -> tuple[fx.Node, list[fx.Node]]:
    """The value that ``node`` is an expanded view of, and the views in between, ``node`` last."""
    views: list[fx.Node] = []
    while node not in inputs and _is_expanded(node) and _sizes_given(node, inputs):
        views.insert(0, node)
        node = node.all_input_nodes[0]
    return node, views


def _sizes_given(view: fx.Node, inputs: Collection[fx.Node]) -> bool:
    return all(size in inputs for size in view.all_input_nodes[1:])


def _is_expanded(node: fx.Node) -> bool:
    value = value_of(node)
    if not isinstance(value, torch.Tensor) or node.target is operator.getitem or not is_view(node):
        return False
    return any(n != 1 and s == 0 for n, s in zip(value.shape, value.stride(), strict=True))


def _made_of(value: Any, views: Sequence[fx.Node], known: Mapping[fx.Node, Any]) -> Any:
    """The last of ``views``, made of ``value`` one after the other; sizes are ``known``."""
    for view in views:
        values = {**known, view.all_input_nodes[0]: value}
        args, kwargs = map_arg((view.args, view.kwargs), values.__getitem__)
        value = view.target(*args, **kwargs)  # type: ignore[operator]
    return value
