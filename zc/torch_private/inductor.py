"""Inductor: one region compiled, and the C++ compiler it needs."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from zc.torch_private.fakes import fake_mode_of
from zc.torch_private.region_files import calling


def compile_region(
    graph_module: fx.GraphModule, example_inputs: Sequence[Any]
) -> Callable[..., Any]:
    """Compile a pure, functional aten graph with Inductor; its cache on disk is used and filled.

    Kernels run in the order of the graph as far as fusion lets them, which predictions of memory
    count on.

    Returns a function that takes the inputs in a list, which it empties, each let go when it has
    been read for the last time, and returns a list of the outputs.
    """
    from torch import _guards
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.proxy_tensor import make_fx

    mode = fake_mode_of(example_inputs)
    with mode, torch.no_grad():
        traced = make_fx(
            fx.Interpreter(graph_module).run,
            decomposition_table=select_decomp_table(),
            tracing_mode="real",
        )(*example_inputs)
    (output,) = traced.graph.find_nodes(op="output")  # regions rely on each other's strides
    output.meta["user_visible_output_idxs"] = list(range(len(output.args[0])))
    for i, node in enumerate(traced.graph.find_nodes(op="placeholder")):
        node.target = node.name = f"region_in{i}"  # Inductor's cache goes by code, not by strides
    traced.recompile()
    in_order = config.patch(reorder_for_locality=False)  # it computes late what is only returned
    with _guards.tracing(_guards.TracingContext(mode)), torch.no_grad(), in_order:
        return calling(compile_fx_inner(traced, list(example_inputs), is_inference=True))


def kernel_seconds() -> float:
    """Seconds that Inductor has spent on compiling and loading kernels, in this process."""
    from torch._dynamo.utils import compilation_time_metrics

    return sum(compilation_time_metrics.get("PyCodeCache.load_by_key_path", ()))


def inductor_counts() -> dict[str, int]:
    """Inductor's counts of regions compiled (``misses``) and loaded from its cache (``hits``)."""
    from torch._dynamo.utils import counters

    counts = counters["inductor"]
    return {
        "hits": counts["fxgraph_cache_hit"],
        "misses": counts["fxgraph_cache_miss"] + counts["fxgraph_cache_bypass"],
    }


def cpp_compiler() -> str:
    """The C++ compiler that Inductor uses.

    Raises:
        torch._inductor.exc.InvalidCxxCompiler: when there is none.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler

    return get_cpp_compiler()


def has_cpp_compiler() -> bool:
    """Whether Inductor finds a working C++ compiler."""
    try:
        cpp_compiler()
    except Exception:  # Inductor raises one of several kinds, none of them public
        return False
    return True
