"""AOTAutograd: joint graphs, their phases and their two halves."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._dynamo
from torch import fx
from torch._dynamo.backends.common import aot_autograd
from torch._functorch import partitioners

from zc.errors import CaptureError


def compile_for_autograd(
    graph_module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    partition: Callable[..., tuple[fx.GraphModule, fx.GraphModule]],
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    whole: Callable[..., Any],
) -> Callable[..., Any]:
    """Lower a Dynamo graph to aten through AOTAutograd.

    ``partition`` receives the joint graph of a differentiable piece and returns its two halves,
    which ``forward`` and ``backward`` then compile; ``whole`` compiles a graph that needs no
    autograd outside (inference, or a step with ``backward()`` inside).
    """
    compiler = aot_autograd(
        fw_compiler=forward,
        bw_compiler=backward,
        inference_compiler=whole,
        partition_fn=partition,
        keep_inference_input_mutations=True,
    )
    try:
        return compiler(graph_module, example_inputs)
    except RuntimeError as error:
        if "does not support RNG ops in recompute regions" not in str(error):
            raise
        raise CaptureError(
            "torch cannot recompute dropout inside torch.utils.checkpoint when backward() is "
            "called in the compiled function; compile the model instead (level 1), or take the "
            "dropout or the checkpoint out"
        ) from error


def boxed(function: Callable[[list[Any]], Any]) -> Callable[..., Any]:
    """Mark ``function``, which takes one list of arguments and empties it, for AOTAutograd."""
    function._boxed_call = True  # type: ignore[attr-defined]
    return function


def split_joint(
    joint: fx.GraphModule,
    saved: list[fx.Node],
    saved_symbols: list[fx.Node],
    saved_opaque: list[fx.Node],
    forward_outputs: int,
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The forward and backward halves of a joint graph, in AOTAutograd's calling convention.

    ``saved``, ``saved_symbols`` and ``saved_opaque`` are the tensors, numbers and meshes that
    backward reads from forward. Every computed node must carry ``meta["partitioner_tag"]``, see
    ``tag_phase``.
    """
    return partitioners._extract_fwd_bwd_modules(
        joint, saved, saved_symbols, saved_opaque, num_fwd_outputs=forward_outputs
    )


def tag_phase(node: fx.Node, phase: str) -> None:
    """Tell ``split_joint`` that ``node`` belongs to ``phase``, forward or backward."""
    node.meta["partitioner_tag"] = f"must_be_in_{phase}"


def is_backward(node: fx.Node) -> bool:
    """Whether autograd made this captured node."""
    if node.meta.get("autograd_backward"):
        return True
    return node.meta.get("partitioner_tag") == "is_backward"


def must_recompute(node: fx.Node) -> bool:
    """Whether ``torch.utils.checkpoint`` in the user's code wants this node recomputed."""
    policy = node.meta.get("recompute")
    return policy is not None and policy.name in ("MUST_RECOMPUTE", "PREFER_RECOMPUTE")


def dynamo_input_index(placeholder: fx.Node) -> int | None:
    """Which argument of the Dynamo graph an AOTAutograd placeholder is, or is a part of."""
    inner = _innermost(placeholder.meta.get("desc"))
    return inner.idx if type(inner).__name__ == "PlainAOTInput" else None


def is_tangent(placeholder: fx.Node) -> bool:
    """Whether an AOTAutograd placeholder is the gradient of an output."""
    return type(_innermost(placeholder.meta.get("desc"))).__name__ == "TangentAOTInput"


def _innermost(description: Any) -> Any:
    """What a description of a tensor inside a tensor subclass is about."""
    while hasattr(description, "base"):
        description = description.base
    return description


def in_backward() -> bool:
    """Whether autograd is running a backward pass on this thread."""
    return backward_number() != -1


def backward_number() -> int:
    """Which backward pass autograd is running on this thread; -1 for none."""
    return torch._C._current_graph_task_id()
