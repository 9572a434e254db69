"""Whole steps for tests: forward, backward and the optimizer, from Python functions.

program = step_program(loss, {"w0": (8, 4)}, {"x": (2, 4)}, of("AdamW"))   # logical
...
outcome(program, {"x": (2, 4)})                        # loss, parameters, state, on every rank
"""

import math
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from tracing import Shapes, program_of
from update.optimizers import Make

from zc.program.nodes import input_of, value_of
from zc.program.printer import is_number
from zc.program.program import Program
from zc.program.stamps import UPDATE as UPDATE_PHASE
from zc.program.stamps import Stamp, set_stamp
from zc.program.tables import Output
from zc.run.lockstep import lockstep, shard_inputs
from zc.state.step import UPDATE
from zc.update.classes import Held, trace_update


def step_program(
    fn: Callable[..., torch.Tensor], params: Shapes, inputs: Shapes, make: Make, **options: Any
) -> Program:
    """The logical program of ``fn(params, inputs).backward()`` and a step of ``make(params)``.

    ``options`` are those of ``program_of``. The program returns the loss.
    """
    program = program_of(fn, params, inputs, **options)
    loss, *grads = program.output_values()
    owned = [torch.nn.Parameter(torch.randn(shape)) for shape in params.values()]
    names = {id(param): name for name, param in zip(params, owned, strict=True)}
    _mark(program, grads)
    program.output_node().args = ([loss],)
    program.outputs = [Output("user")]
    with program.fake_mode:
        held = [Held(names[id(p)], p, 0, torch.empty(p.shape), torch.empty(p.shape)) for p in owned]
    program.updates = [trace_update(make(owned), "opt", held, program.fake_mode).update]
    return program


def _mark(program: Program, grads: list[fx.Node | None]) -> None:
    """Put the marker of ``zc.step`` behind everything else."""
    graph = program.graph
    pairs = zip(program.placeholders("param"), grads, strict=True)
    found = [(param, grad) for param, grad in pairs if grad is not None]
    with graph.inserting_before(program.output_node()):
        marker = graph.call_function(UPDATE, ([p for p, _ in found], [g for _, g in found], 0))
    set_stamp(marker, Stamp(phase=UPDATE_PHASE))


def outcome(program: Program, inputs: Shapes) -> list[dict[str, Any]]:
    """The loss, all parameters and all state after a step of the physical ``program``, by rank.

    Parameters and state are drawn by name, so programs with the same names begin alike: state
    between 0 and 1, caches from their parameters.
    """
    given = step_inputs(program, inputs)
    losses = lockstep(program, given)
    names = [input_of(node).subject for node in program.placeholders()]
    rows = zip(losses, given, strict=True)
    return [{"loss": loss[0]} | dict(zip(names, values, strict=True)) for loss, values in rows]


def step_inputs(program: Program, inputs: Shapes) -> list[list[Any]]:
    """Inputs of every rank for the physical ``program``: same parameters and state, own batches."""
    whole = {name: _drawn(name, torch.zeros(p.shape)) - 0.5 for name, p in program.params.items()}
    found = []
    for rank in range(math.prod(size for _, size in program.mesh.axes)):
        others = {
            name: _drawn(f"{name} {rank}", torch.zeros(shape)) for name, shape in inputs.items()
        }
        late = {input_of(n).subject: value_of(n) for n in program.placeholders("state")}
        others |= {name: _drawn(name, value) for name, value in late.items()}
        given = shard_inputs(program, whole, rank, others)
        found.append(_with_caches(program, given))
    return found


def _drawn(name: str, like: Any) -> Any:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    if is_number(like):
        return 0.1 + 0.8 * torch.rand((), generator=generator).item()
    return torch.rand(like.shape, generator=generator).to(like.dtype)


def _with_caches(program: Program, given: list[Any]) -> list[Any]:
    places = program.placeholders()
    params = {input_of(n).subject: v for n, v in zip(places, given, strict=True)}
    found = []
    for node, value in zip(places, given, strict=True):
        entry = program.state.get(input_of(node).subject)
        made = entry is not None and entry.kind == "cache" and entry.dtype is not None
        found.append(params[entry.param].to(entry.dtype) if made else value)
    return found
