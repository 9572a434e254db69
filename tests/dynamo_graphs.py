"""The graphs that Dynamo and AOTAutograd make of a function, for tests of what zc relies on."""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from zc import torch_private


def dynamo_graphs(function: Callable[..., Any], *args: Any) -> list[fx.GraphModule]:
    """The graphs that Dynamo makes of ``function(*args)``."""
    found: list[fx.GraphModule] = []

    def keep(module: fx.GraphModule, _: list[Any]) -> Any:
        found.append(module)
        return module.forward

    torch.compile(function, backend=keep)(*args)
    return found


def sources(function: Callable[..., Any], *args: Any) -> list[str]:
    """Where Dynamo reads the inputs of ``function`` from; known while it compiles."""
    found: list[str] = []

    def backend(module: fx.GraphModule, _: list[Any]) -> Any:
        inputs = module.graph.find_nodes(op="placeholder")
        found.extend(map(torch_private.source_expression, inputs))
        return module.forward

    torch.compile(function, backend=backend)(*args)
    return sorted(found)


def joint_graph(function: Callable[..., Any], *args: Any) -> fx.GraphModule:
    """The joint graph that AOTAutograd makes of ``function(*args)``."""
    found: list[fx.GraphModule] = []

    def partition(joint: fx.GraphModule, inputs: Any, *, num_fwd_outputs: int, **_: Any) -> Any:
        from functorch.compile import default_partition

        found.append(joint)
        return default_partition(joint, inputs, num_fwd_outputs=num_fwd_outputs)

    def boxed(module: fx.GraphModule, _: Any) -> Any:
        return torch_private.boxed(lambda args: module(*args))

    def backend(module: fx.GraphModule, inputs: list[Any]) -> Any:
        return torch_private.compile_for_autograd(
            module, inputs, partition=partition, forward=boxed, backward=boxed, whole=boxed
        )

    torch.compile(function, backend=backend)(*args)
    return found[0]
