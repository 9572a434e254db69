"""Gradients that no program can hold: those of embeddings with ``sparse=True``."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from zc.capture.arguments import Argument
from zc.errors import CaptureError

_SPARSE_ARGUMENT: dict[Any, int] = {F.embedding: 6, F.embedding_bag: 7}


def refuse_sparse_gradients(module: fx.GraphModule, arguments: Sequence[Argument]) -> None:
    """Refuse a lookup whose backward would make a sparse gradient.

    Args:
        module: what Dynamo traced.
        arguments: of its placeholders, in order.

    Raises:
        CaptureError: naming the parameter.
    """
    if not torch.is_grad_enabled():
        return
    placeholders = module.graph.find_nodes(op="placeholder")
    of = dict(zip(placeholders, arguments, strict=True))
    for target, position in _SPARSE_ARGUMENT.items():
        for node in module.graph.find_nodes(op="call_function", target=target):
            weight: Any = node.args[1] if len(node.args) > 1 else node.kwargs["weight"]
            given = node.args[position] if len(node.args) > position else None
            argument = of.get(_origin(weight))
            trainable = argument is None or argument.trainable
            if (given or node.kwargs.get("sparse")) and trainable:
                name = argument.name if argument is not None else str(weight)
                raise CaptureError(
                    f"'{name}' would get a sparse gradient, which a program cannot hold; build "
                    f"its embedding with sparse=False"
                )


def _origin(node: fx.Node) -> fx.Node:
    """The placeholder behind a read of a parameter."""
    while node.op != "placeholder" and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node
