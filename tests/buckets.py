"""Programs for tests of ``bucket_collectives``, and what its buckets hold."""

from typing import Any

import torch
from torch import fx
from tracing import Shapes, physical, program_of
from zc.passes.bucket_collectives import BucketCollectives

from zc.program.collectives import collectives_of, is_coalesced
from zc.program.program import Program
from zc.program.stamps import stamp_of
from zc.program.units import Bytes
from zc.verify import verify

Tensors = dict[str, torch.Tensor]
INPUTS: Shapes = {"x": (4, 8)}
SQUARES: Shapes = {f"w{i}": (8, 8) for i in range(4)}
MIXED: Shapes = {"w0": (16, 8), "b": (3,), "w1": (16, 5), "scale": (5, 3)}
ONE = 8 * 8 * 4  # bytes of one of SQUARES, whole


def chain(p: Tensors, x: Tensors) -> torch.Tensor:
    value = x["x"]
    for weight in p.values():
        value = torch.tanh(value @ weight)
    return value.square().mean()


def mixed(p: Tensors, x: Tensors) -> torch.Tensor:
    """Rows and columns, tied and padded parameters, one that every rank keeps, several dtypes."""
    hidden = torch.tanh(x["x"] @ p["w0"].t()) @ p["w1"]
    half = hidden.bfloat16() @ p["scale"].bfloat16()
    return (half + p["b"]).float().square().mean() + p["w0"].sum()


def bucketed(program: Program, gathers: int = 10**6, reductions: int = 10**6) -> Program:
    """``program`` itself, verified, after the pass."""
    BucketCollectives(Bytes(gathers), Bytes(reductions)).run(program)
    verify(program, full=True)
    return program


def squares(zero_stage: int = 3, **options: Any) -> Program:
    return physical(
        program_of(chain, SQUARES, INPUTS, sharded=zero_stage > 0, **options), zero_stage
    )


def computed(program: Program) -> list[fx.Node]:
    return [node for node in program.graph.nodes if node.op == "call_function"]


def buckets(program: Program) -> list[tuple[str, str, tuple[str, ...]]]:
    """Operation, phase and parameters of each collective, in order."""
    found = []
    for row in collectives_of(program):
        items = row.node.users if is_coalesced(row.node) else [row.node]
        names = tuple(stamp_of(item).param for item in items)
        found.append((row.spec.op, row.stamp.phase, names))
    return found
