"""The ``zero`` backend of ``torch.compile``: capture, passes, verification and execution."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from zc import clock, plan, torch_private
from zc.capture.arguments import (
    Argument,
    describe_arguments,
    mark_plain_parameters,
    tag_reads,
)
from zc.capture.build import Traced, build_program
from zc.capture.naming import function_name
from zc.capture.session import current_session
from zc.capture.sparse import refuse_sparse_gradients
from zc.capture.updates import Stepped, adopt_updates
from zc.comm.groups import DEFAULT_AXIS, default_mesh, registered_mesh
from zc.errors import ZcError
from zc.options import Settings, read_options
from zc.program.mesh import Mesh
from zc.program.program import Program
from zc.program.tables import Output
from zc.run.deferred import Deferred, deferred_of, refusing
from zc.run.executor import Loop
from zc.run.split import split_program
from zc.run.variants import Store, Variant, Variants
from zc.state.averaged import mark_averaged
from zc.state.spec import spec_of
from zc.transform import Ready, transform
from zc.update.stepping import OptimizerStep

_SAVED = Output("user", "saved")

torch_private.check_version()


def zero(
    graph_module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: dict[str, Any] | None = None,
) -> Callable[..., Any]:
    """Compile one Dynamo graph; torch finds this function by the name ``zero``.

    Args:
        graph_module: what Dynamo traced.
        example_inputs: the arguments of the call that is being compiled.
        options: ``passes``, ``executor``, ``dump``, ``verify``; see ``zc.options``.

    Raises:
        ZcError: for anything that cannot be compiled as asked, before the first step runs.
    """
    settings = read_options(options)
    torch_private.trace_again_if_needed(graph_module, _has_external_graph(example_inputs))
    clock.mark()
    clock.add("Dynamo", torch_private.seconds_in_dynamo())
    try:
        with clock.spending("AOTAutograd"):
            return _compile(graph_module, example_inputs, settings)
    finally:
        torch_private.seconds_in_dynamo()  # goes on from here


def _compile(
    graph_module: fx.GraphModule, example_inputs: Sequence[Any], settings: Settings
) -> Callable[..., Any]:
    if torch_private.backward_outside(graph_module):
        _say_detach(function_name(graph_module))
    if torch_private.backward_under_default_device(graph_module):
        _say_default_device(function_name(graph_module))
    arguments = describe_arguments(graph_module.graph, example_inputs)
    refuse_sparse_gradients(graph_module, arguments)
    mesh = _mesh_of(example_inputs)
    tag_reads(graph_module)
    mark_plain_parameters(graph_module, arguments, example_inputs, mesh)
    name = function_name(graph_module)
    compilation = Compilation(
        settings, arguments, mesh, name, _parameters(arguments, example_inputs)
    )
    return torch_private.compile_for_autograd(
        graph_module,
        example_inputs,
        partition=compilation.partition,
        forward=compilation.forward,
        backward=compilation.backward,
        whole=compilation.whole,
    )


class Compilation:
    """One Dynamo graph on its way through AOTAutograd, which calls the methods below."""

    def __init__(
        self,
        settings: Settings,
        arguments: list[Argument],
        mesh: Mesh,
        name: str,
        parameters: dict[str, torch.Tensor],
    ) -> None:
        self._settings = settings
        self._arguments = arguments
        self._mesh = mesh
        self._name = name
        self._parameters = dict(parameters)  # until the program is ready
        self._tokens = [plan.token(param) for param in parameters.values()]
        self._deferred: dict[str, Deferred] = {}
        self._ready = Ready("interpret")
        self._program: Program | None = None

    def partition(
        self, joint: fx.GraphModule, _inputs: Any, *, num_fwd_outputs: int, **_: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        """Run the passes on a joint graph, then split it."""
        self._program = self._capture(joint, num_fwd_outputs)
        self._finish(self._program)
        return split_program(self._program)

    def forward(self, half: fx.GraphModule, _inputs: Any) -> Callable[..., Any]:
        """The forward half as a boxed function: outputs, then what backward needs."""
        return self._half(half, "forward")

    def backward(self, half: fx.GraphModule, _inputs: Any) -> Callable[..., Any]:
        """The backward half as a boxed function."""
        return self._half(half, "backward")

    def whole(self, module: fx.GraphModule, _inputs: Any) -> Callable[..., Any]:
        """A graph that runs as one: inference, or a step with ``backward()`` inside."""
        program = self._capture(module, None)
        steps = adopt_updates(program)
        if steps:
            return self._stepping(program, steps)
        self._finish(program)
        return self._runnable(program, program.graph, program.outputs, "step")

    def _stepping(self, logical: Program, steps: list[Stepped]) -> Callable[..., Any]:
        """A step with ``zc.step`` inside: the optimizer's part is traced anew when it changes."""

        def build(variant: Variant) -> Loop:
            program = variant.program
            how = {"name": "step", "cells": variant.cells(), "store": Store(variant.steps)}
            return self._ready.loop(program, program.graph, program.outputs, **how)

        found = [
            OptimizerStep.find(s.handle, s.dtypes(), self._parameters, s.scaler) for s in steps
        ]
        variants = Variants(logical, found, self._transform, build)
        program = variants.trace().program
        current_session().finished(program)
        self._parameters.clear()
        whole = logical.level == 2
        run = refusing(program.name, variants.run) if whole else variants.run
        return current_session().wrap(program, lambda: run)

    def _half(self, half: fx.GraphModule, phase: str) -> Callable[..., Any]:
        program = self._program
        if program is None:
            raise ZcError(f"{phase} half of {self._name} arrived before its joint graph")
        values: Any = half.graph.find_nodes(op="output")[0].args[0]
        own = [o for o in program.outputs if o.phase == phase]
        outputs = own + [_SAVED] * (len(values) - len(own))
        return self._runnable(program, half.graph, outputs, phase)

    def _runnable(
        self, program: Program, graph: fx.Graph, outputs: list[Output], name: str
    ) -> Callable[..., Any]:
        def build() -> Callable[[list[Any]], list[Any]]:
            if program.level == 2:
                loop = self._ready.loop(program, graph, outputs, name=name)
                return refusing(program.name, loop)
            how = {"name": name, "deferred": self._deferred}
            return self._ready.loop(program, graph, outputs, **how)

        return current_session().wrap(program, build)

    def _capture(self, module: fx.GraphModule, forward_outputs: int | None) -> Program:
        with clock.spending("capture"):
            return self._build(module, forward_outputs)

    def _build(self, module: fx.GraphModule, forward_outputs: int | None) -> Program:
        layouts = {name: spec_of(param) for name, param in self._parameters.items()}
        rest = {name: spec.layout for name, spec in layouts.items() if spec is not None}
        return build_program(
            Traced(module, self._arguments, self._mesh, self._name, forward_outputs, rest)
        )

    def _finish(self, program: Program) -> None:
        self._transform(program)
        current_session().finished(program)
        self._parameters.clear()

    def _transform(self, program: Program) -> None:
        sharded = any(a.sharded for a in self._arguments)
        self._ready = transform(program, self._settings, self._tokens, sharded=sharded)
        averages = program.training and self._mesh.size(DEFAULT_AXIS) > 1 and not sharded
        if program.level == 1 and program.rules.get("zero_stage") != 3:
            self._deferred = {name: deferred_of(p) for name, p in self._parameters.items()}
        if averages and current_session().runs:
            mark_averaged(p for p in self._parameters.values() if p.requires_grad)


def _has_external_graph(example_inputs: Sequence[Any]) -> bool:
    """Whether some argument is a result of differentiable code outside the compiled function."""
    tensors = [x for x in example_inputs if isinstance(x, torch.Tensor)]
    return any(x.requires_grad and not x.is_leaf for x in tensors)


def _say_detach(name: str) -> None:
    warnings.warn(
        f"{name} returns a loss whose graph its backward() has used up, so forward and backward "
        f"are compiled apart (level 1); return loss.detach() to compile the whole step as one "
        f"program",
        stacklevel=2,
    )


def _say_default_device(name: str) -> None:
    warnings.warn(
        f"{name} calls backward() under torch.set_default_device or torch.device, where Dynamo "
        f"cannot trace it, so forward and backward are compiled apart (level 1); call the step "
        f"without: torch.set_default_device(None)",
        stacklevel=2,
    )


def _parameters(
    arguments: Sequence[Argument], example_inputs: Sequence[Any]
) -> dict[str, torch.Tensor]:
    pairs = zip(arguments, example_inputs, strict=True)
    return {a.name: x for a, x in pairs if a.kind == "param"}


def _mesh_of(example_inputs: Sequence[Any]) -> Mesh:
    sharded = any(hasattr(x, "device_mesh") for x in example_inputs if isinstance(x, torch.Tensor))
    return registered_mesh() if sharded else default_mesh()
