"""The programs of one optimizer's step: one for each set of parameters that have a gradient."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from zc import clock, plan
from zc.capture.lone_step import Stepped, layout_of, lone_step
from zc.capture.session import Captured, current_session
from zc.capture.updates import adopt_updates
from zc.comm.groups import default_mesh, registered_mesh
from zc.errors import CaptureError, ExecutionError
from zc.options import Settings
from zc.program.layout import Layout
from zc.program.packing import local_view
from zc.program.program import Program
from zc.run.executor import Loop
from zc.run.variants import Store, Variant, Variants
from zc.state.optimizers import handle_of
from zc.state.reading import local_of
from zc.state.spec import spec_of
from zc.transform import Ready, transform
from zc.update.stepping import OptimizerStep


class LoweredStep:
    """``optimizer.step()`` without its hooks, as programs.

    Args:
        optimizer: which parameters it steps, and with what numbers, is looked up at each call.
        settings: the pass pipeline, executor and dump.

    Raises:
        ExecutionError: when a CUDA graph is asked for.
    """

    def __init__(self, optimizer: Optimizer, settings: Settings) -> None:
        _refuse_recording(optimizer, settings)
        self._optimizer = optimizer
        self._settings = settings
        self._programs: dict[Any, _Compiled] = {}

    @torch.no_grad()
    def __call__(self) -> None:
        """Step every parameter that has a gradient.

        Raises:
            CaptureError: for an optimizer or gradients that cannot be compiled, by name.
        """
        _refuse_scaling(self._optimizer)
        held = [
            (g, i, param)
            for g, group in enumerate(self._optimizer.param_groups)
            for i, param in enumerate(group["params"])
            if param.grad is not None
        ]
        if not held:
            return
        grads = [local_of(param.grad) for _, _, param in held]
        key = tuple(
            (g, i, id(param), *_type_of(grad))
            for (g, i, param), grad in zip(held, grads, strict=True)
        )
        if key not in self._programs:
            stepped = [
                Stepped(_name(*place), place[2], grad)
                for place, grad in zip(held, grads, strict=True)
            ]
            self._programs[key] = _Compiled(self._optimizer, self._settings, stepped)
        self._programs[key].run(grads)


class _Compiled:
    """The program for one set of parameters with gradients of some types."""

    def __init__(
        self, optimizer: Optimizer, settings: Settings, stepped: Sequence[Stepped]
    ) -> None:
        clock.mark()
        for item in stepped:
            _check(optimizer, item)
        self._settings = settings
        self._ready = Ready("interpret")
        self._params = [item.param for item in stepped]
        self._sharded = any(isinstance(param, DTensor) for param in self._params)
        mesh = registered_mesh() if self._sharded else default_mesh()
        layouts = [layout_of(param, mesh) for param in self._params]
        self._padded = [(i, lay) for i, lay in enumerate(layouts) if not lay.replicated]
        program = lone_step(f"{type(optimizer).__name__}.step", stepped, mesh)
        grads = {item.name: item.grad.dtype for item in stepped}
        named = {item.name: item.param for item in stepped}
        found = OptimizerStep.find(handle_of(optimizer), grads, named)
        adopt_updates(program)
        self._variants = Variants(program, [found], self._transform, self._build)
        traced = self._variants.trace().program
        current_session().finished(traced)
        if not current_session().runs:
            raise Captured

    def run(self, grads: list[torch.Tensor]) -> None:
        """Step from ``grads``, which the list loses."""
        for index, layout in self._padded:
            grads[index] = _stored(grads[index], layout)
        self._variants.run([*map(local_of, self._params), *grads])

    def _transform(self, program: Program) -> None:
        tokens = [plan.token(param) for param in self._params]
        self._ready = transform(program, self._settings, tokens, sharded=self._sharded)

    def _build(self, variant: Variant) -> Loop:
        program, cells, store = variant.program, variant.cells(), Store(variant.steps)
        how = {"name": "step", "cells": cells, "store": store}
        return self._ready.loop(program, program.graph, program.outputs, **how)


def _type_of(grad: torch.Tensor) -> tuple[Any, ...]:
    return (grad.dtype, grad.shape, grad.stride() if grad.layout is torch.strided else grad.layout)


def _name(group: int, place: int, param: torch.Tensor) -> str:
    spec = spec_of(param)
    return spec.name if spec is not None else f"group{group}.param{place}"


def _check(optimizer: Optimizer, item: Stepped) -> None:
    kind, grad = type(optimizer).__name__, item.param.grad
    if item.grad.layout is not torch.strided:
        raise CaptureError(
            f"'{item.name}' has a gradient of layout {item.grad.layout}, which {kind}.step cannot "
            f"be compiled for; make it dense, or call {kind}.step uncompiled"
        )
    if isinstance(grad, DTensor) and grad.placements != item.param.placements:  # type: ignore
        raise CaptureError(
            f"'{item.name}' lies as {item.param.placements} and its gradient as "  # type: ignore
            f"{grad.placements}; redistribute the gradient as its parameter lies"
        )


def _refuse_scaling(optimizer: Optimizer) -> None:
    """A step that divides by GradScaler's scale itself does so in a kernel that is not traced."""
    if getattr(optimizer, "grad_scale", None) is None:
        return
    kind = type(optimizer).__name__
    raise CaptureError(
        f"torch.amp.GradScaler leaves it to {kind}(fused=True) to unscale gradients, which a "
        f"compiled step does not; build {kind} without fused=True"
    )


def _refuse_recording(optimizer: Optimizer, settings: Settings) -> None:
    if settings.pipeline_for(sharded=True).cuda_graph:
        raise ExecutionError(
            f"cuda_graph records a whole step, and {type(optimizer).__name__}.step is compiled by "
            f"itself; call zc.step(optimizer) in a compiled function with loss.backward(), or "
            f"leave cuda_graph out"
        )


def _stored(grad: torch.Tensor, layout: Layout) -> torch.Tensor:
    """A gradient in the form of its parameter's storage, with zeros in the padding."""
    if tuple(grad.shape) == layout.storage_shape:
        return grad.contiguous()
    padded = grad.new_zeros(layout.storage_numel)
    local_view(padded, layout, tuple(grad.shape)).copy_(grad)
    return padded.view(layout.storage_shape)
