"""What zc relies on in the graphs of Dynamo and AOTAutograd, with the versions tried."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo
from dynamo_graphs import dynamo_graphs, joint_graph, sources
from torch import fx, nn
from torch.utils.checkpoint import checkpoint

from zc import torch_private

aten: Any = torch.ops.aten
ROUNDING = 1e-6  # Inductor's sine and sum are not ATen's
Backend = Callable[[fx.GraphModule, list[Any]], Any]
pytestmark = pytest.mark.usefixtures("fresh_compiler")


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4, bias=False)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[0](x).tanh()


def square_step(weight: torch.Tensor) -> torch.Tensor:
    loss = weight.square().sum()
    loss.backward()
    return loss.detach()


def test_configure_dynamo(monkeypatch: pytest.MonkeyPatch):
    """Tried on 2.13: without it, Dynamo makes no graph of a recurrent module."""
    monkeypatch.setattr(torch._dynamo.config, "allow_rnn", False)
    torch_private.configure_dynamo()
    assert torch._dynamo.config.allow_rnn is True
    assert len(dynamo_graphs(nn.LSTM(2, 2), torch.ones(1, 1, 2))) == 1


def tracing_again(external_graph: bool = False) -> tuple[Backend, list[bool]]:
    seen: list[bool] = []

    def backend(module: fx.GraphModule, _: list[Any]) -> Any:
        torch_private.trace_again_if_needed(module, external_graph)
        seen.append(torch._dynamo.config.trace_autograd_ops)
        return module.forward

    return backend, seen


def test_trace_again_if_needed():
    """Tried on 2.13: one graph holds forward and backward, and the setting is off behind it."""
    backend, seen = tracing_again()
    weight = torch.ones(3, requires_grad=True)
    assert torch.compile(square_step, backend=backend)(weight) == 3
    assert seen == [True]
    assert weight.grad is not None
    assert weight.grad.tolist() == [2, 2, 2]
    assert not torch._dynamo.config.trace_autograd_ops


def test_trace_again_if_needed_leaves_outer_graphs_alone():
    """Tried on 2.13: a backward that leads outside stays eager."""
    backend, seen = tracing_again(external_graph=True)
    weight = torch.ones(3, requires_grad=True)
    torch.compile(square_step, backend=backend)(weight * 2)
    assert True not in seen
    assert weight.grad is not None
    assert weight.grad.tolist() == [8, 8, 8]


def test_settings_are_off_after_a_failed_compile():
    """Tried on 2.13."""

    def backend(module: fx.GraphModule, _: list[Any]) -> Any:
        torch_private.trace_again_if_needed(module, False)
        raise ValueError("no")

    with pytest.raises(Exception, match="no"):
        torch.compile(square_step, backend=backend)(torch.ones(3, requires_grad=True))
    assert not torch._dynamo.config.trace_autograd_ops


def test_backward_outside():
    """Tried on 2.13: the reason of a graph whose returned loss its backward has used up."""
    reasons: list[bool] = []

    def backend(module: fx.GraphModule, _: list[Any]) -> Any:
        torch_private.trace_again_if_needed(module, False)
        reasons.append(torch_private.backward_outside(module))
        return module.forward

    def step(weight: torch.Tensor) -> torch.Tensor:
        loss = weight.square().sum()
        loss.backward()
        return loss

    torch.compile(step, backend=backend)(torch.ones(3, requires_grad=True))
    assert reasons[0] is True


def test_compile_for_autograd():
    """Tried on 2.13: a joint graph is partitioned, a graph without gradients is compiled whole."""
    calls: list[str] = []

    def note(name: str) -> Callable[..., Any]:
        def compiler(module: fx.GraphModule, _: Any) -> Any:
            calls.append(name)
            return torch_private.boxed(lambda args: module(*args))

        return compiler

    def partition(joint: fx.GraphModule, inputs: Any, *, num_fwd_outputs: int, **_: Any) -> Any:
        from functorch.compile import default_partition

        calls.append(f"partition {num_fwd_outputs}")
        return default_partition(joint, inputs, num_fwd_outputs=num_fwd_outputs)

    def backend(module: fx.GraphModule, inputs: list[Any]) -> Any:
        parts = {name: note(name) for name in ("forward", "backward", "whole")}
        return torch_private.compile_for_autograd(module, inputs, partition=partition, **parts)

    compiled = torch.compile(lambda x: x.sin(), backend=backend)
    compiled(torch.ones(2, requires_grad=True)).sum().backward()
    assert calls == ["partition 1", "forward", "backward"]
    compiled(torch.ones(2))
    assert calls[3:] == ["whole"]


def test_compile_for_autograd_keeps_writes():
    """Tried on 2.13: a written input is a ``copy_`` in the graph, not an output."""
    found: list[fx.GraphModule] = []

    def whole(module: fx.GraphModule, _: Any) -> Any:
        found.append(module)
        return torch_private.boxed(lambda args: module(*args))

    def backend(module: fx.GraphModule, inputs: list[Any]) -> Any:
        return torch_private.compile_for_autograd(
            module, inputs, partition=whole, forward=whole, backward=whole, whole=whole
        )

    x = torch.ones(2)
    torch.compile(lambda x: x.add_(1).sum(), backend=backend)(x)
    assert x.tolist() == [2, 2]
    assert found[0].graph.find_nodes(op="call_function", target=aten.copy_.default)


def test_boxed():
    """Tried on 2.13: AOTAutograd hands a boxed function its own list, which it may empty."""
    left: list[int] = []

    def whole(module: fx.GraphModule, _: Any) -> Any:
        def run(args: list[Any]) -> Any:
            result = module(*args)
            args.clear()
            left.append(len(args))
            return result

        return torch_private.boxed(run)

    def backend(module: fx.GraphModule, inputs: list[Any]) -> Any:
        return torch_private.compile_for_autograd(
            module, inputs, partition=whole, forward=whole, backward=whole, whole=whole
        )

    assert torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2)).tolist() == [2, 2]
    assert left == [0]


def test_split_joint_and_tag_phase():
    """Tried on 2.13: outputs first, then what is saved; backward takes that, then tangents."""
    joint = joint_graph(lambda w: w.sin(), torch.ones(4, requires_grad=True))
    for node in joint.graph.nodes:
        if node.op == "call_function":
            torch_private.tag_phase(
                node, "backward" if torch_private.is_backward(node) else "forward"
            )
    weight = next(iter(joint.graph.nodes))
    forward, backward = torch_private.split_joint(joint, [weight], [], [], 1)
    (output,) = forward.graph.find_nodes(op="output")
    assert [n.name for n in output.args[0]] == ["sin", weight.name]
    inputs = backward.graph.find_nodes(op="placeholder")
    assert [n.name for n in inputs] == [weight.name, "tangents_1"]


def test_is_backward():
    """Tried on 2.13."""
    nodes = joint_graph(lambda x: x.sin(), torch.ones(2, requires_grad=True)).graph.nodes
    phases = {n.name: torch_private.is_backward(n) for n in nodes if n.op == "call_function"}
    assert phases == {"sin": False, "cos": True, "mul": True}


def test_must_recompute():
    """Tried on 2.13: what ran in a checkpointed function is tagged."""

    def function(x: torch.Tensor) -> torch.Tensor:
        return checkpoint(torch.tanh, x, use_reentrant=False).sin()

    nodes = joint_graph(function, torch.ones(2, requires_grad=True)).graph.nodes
    assert {"tanh"} <= {n.name for n in nodes if torch_private.must_recompute(n)}
    assert not any(torch_private.must_recompute(n) for n in nodes if n.name == "sin")


def test_source_expression():
    """Tried on 2.13: the path of a parameter, an argument, a gradient."""
    weight = "L['self']._modules['layers']._modules['0']._parameters['weight']"
    assert sources(Tower(), torch.ones(1, 4)) == [weight, "L['x']"]
    unknown = fx.Graph().placeholder("x")
    assert torch_private.source_expression(unknown) == ""


def test_source_expression_of_a_gradient():
    """Tried on 2.13."""
    weight = torch.ones(2, requires_grad=True)
    weight.grad = torch.ones(2)
    assert "L['w'].grad" in sources(lambda w: w.grad + 1, weight)


def test_descriptions_of_inputs():
    """Tried on 2.13: which argument an input is, and what is a tangent."""

    def function(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x * w

    joint = joint_graph(function, torch.ones(2), torch.ones(2, requires_grad=True))
    inputs = joint.graph.find_nodes(op="placeholder")
    assert [torch_private.dynamo_input_index(n) for n in inputs] == [0, 1, None]
    assert [torch_private.is_tangent(n) for n in inputs] == [False, False, True]


def test_never_compile_alone():
    """Tried on 2.13: called by itself it stays eager, called from others it is inlined."""

    def inner(x: torch.Tensor) -> torch.Tensor:
        return x.sin()

    def outer(x: torch.Tensor) -> torch.Tensor:
        return inner(x) + 1

    torch_private.never_compile_alone(inner)
    assert dynamo_graphs(inner, torch.ones(2)) == []
    (graph,) = dynamo_graphs(outer, torch.ones(2))
    assert "sin" in str(graph.graph)


def test_code_being_compiled():
    """Tried on 2.13."""
    found: list[Any] = []

    def function(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    def backend(module: fx.GraphModule, _: list[Any]) -> Any:
        found.append(torch_private.code_being_compiled())
        return module.forward

    torch.compile(function, backend=backend)(torch.ones(2))
    assert found == [function.__code__]
    assert torch_private.code_being_compiled() is None


def test_backward_under_default_device():
    """Tried on 2.13: the reason of a graph that ends at ``backward()`` under a default device."""
    reasons = []

    def backend(module: Any, _: Any) -> Any:
        reasons.append(torch_private.backward_under_default_device(module))
        return module

    def step(x: torch.Tensor) -> None:
        (x * 2).sum().backward()

    torch._dynamo.reset()
    torch.compile(step, backend=backend)(torch.ones(2, requires_grad=True))
    with torch.device("cpu"):
        torch._dynamo.reset()
        torch.compile(step, backend=backend)(torch.ones(2, requires_grad=True))
    assert reasons == [False, True]
