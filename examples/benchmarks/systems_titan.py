"""SimpleFSDP and graph_trainer, from the package torchtitan 0.3.0, on CPUs.

SimpleFSDP keeps parameters as DTensors whose reads gather, and ``torch.compile`` makes one graph of
it, where a pass buckets the collectives of each block. graph_trainer traces forward, loss and
backward into one graph and runs torchtitan's own list of passes on it, CUDA graphs left out. Both
sum gradients, so the loss is divided by the number of ranks first.

What the model needs for them is in ``titan_model.py``. Here, the attention kernel for CPUs joins
the operations whose results are saved, and a GPU's bandwidth is not asked for.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from systems import GPT, Builder, Step, Trained, adamw, backend, stepping
from titan_model import rename, shard
from torch import nn

_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_SET_BY_TITAN = (  # by get_compile_backend_with_passes, for the whole process
    "allow_buffer_reuse", "reorder_for_peak_memory", "reorder_for_compute_comm_overlap",
    "post_grad_custom_post_pass",
)  # fmt: skip


def _simple_fsdp(reshard: bool) -> Builder:
    def build(model: GPT, executor: str) -> Trained:
        layers = len(model.blocks)
        shard(model, reshard)
        compiled = torch.compile(model, fullgraph=True, **_buckets(layers, executor))
        return Trained(model, stepping(_with_estimates(_summed(compiled)), adamw(model)))

    return build


def _buckets(layers: int, executor: str) -> dict[str, Any]:
    """Arguments of ``torch.compile`` that bucket collectives by block.

    torchtitan sets Inductor's options for the whole process; here they are one function's.
    """
    from torchtitan.experiments.graph_trainer import common_utils, configs, jit_backend

    settings = configs.GraphTrainerCompileConfig(
        mode="jit", backend=backend(executor), passes=["transformer_block_bucketing"]
    )
    plan = common_utils.get_default_transformer_block_buckets(layers)
    inductor: Any = torch._inductor.config
    with inductor.patch({key: getattr(inductor, key) for key in _SET_BY_TITAN}):
        found = jit_backend.get_compile_backend_with_passes(settings, plan)
        options = {key: getattr(inductor, key) for key in _SET_BY_TITAN}
    return {"options": options} if executor == "inductor" else {"backend": found}


def _graph_trainer(reshard: bool) -> Builder:
    def build(model: GPT, executor: str) -> Trained:
        from torchtitan.experiments.graph_trainer.common_utils import annotate_module_fqns

        settings = _settings(len(model.blocks), executor, reshard)
        rename(model)
        annotate_module_fqns(model)
        shard(model, reshard=False)
        return Trained(model, stepping(_with_estimates(_traced(model, settings)), adamw(model)))

    return build


def _settings(layers: int, executor: str, reshard: bool) -> Any:
    """What torchtitan's passes read of a trainer's configuration."""
    from torchtitan.experiments.graph_trainer import configs, registry

    registry.MEMORY_POLICY_REGISTRY["default_on_cpu"] = _tag_what_is_saved
    return SimpleNamespace(
        compile=configs.GraphTrainerCompileConfig(
            memory_policy="default_on_cpu",
            inductor_compilation="full" if executor == "inductor" else "regional",
            disable_passes=["cudagraph_pass"],
        ),
        model_spec=SimpleNamespace(model=SimpleNamespace(layers=[None] * layers)),
        parallelism=SimpleNamespace(
            fsdp_reshard_after_forward="always" if reshard else "never",
            pipeline_parallel_degree=1,
            tensor_parallel_degree=1,
        ),
    )


def _tag_what_is_saved(graph_module: torch.fx.GraphModule, *, config: Any) -> torch.fx.GraphModule:
    """The default policy of torchtitan, whose list of attention kernels lacks the one for CPUs."""
    from torchtitan.experiments.graph_trainer import memory_policy

    saved = memory_policy._get_default_save_ops() | {_ATTENTION}
    with patch.object(memory_policy, "_get_default_save_ops", lambda: saved):
        return memory_policy._default_memory_policy_pass(graph_module, config=config)


def _traced(model: nn.Module, settings: Any) -> Step:
    """Forward and backward as one graph, traced at the first call."""
    from torchtitan.experiments.graph_trainer import common_utils, make_fx_tracer, passes

    def losses_and_gradients(tokens: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
        loss = model(tokens, targets)
        averaged = loss / torch.distributed.get_world_size()
        return [loss, *torch.autograd.grad(averaged, _parameters(model))]

    run: list[Callable[..., Any]] = []

    def forward_and_backward(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if not run:
            traced = make_fx_tracer.minimal_fx_tracer(losses_and_gradients, module=model)(
                tokens, targets
            )
            found = passes.construct_default_graph_passes(traced, settings)
            traced.gm = passes.apply_graph_passes(
                traced.gm, traced.example_inputs, found, compile_config=settings.compile
            )
            run.append(make_fx_tracer.run_traced(traced, module=model))
        loss, *gradients = run[0](tokens, targets)
        common_utils.accumulate_param_grads_(_parameters(model), gradients)
        return loss

    return forward_and_backward


def _parameters(model: nn.Module) -> list[nn.Parameter]:
    """One for each place: torchtitan adds up the gradients of a tied weight's places."""
    return [parameter for _, parameter in model.named_parameters(remove_duplicate=False)]


def _summed(model: Callable[..., torch.Tensor]) -> Step:
    def forward_and_backward(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = model(tokens, targets)
        (loss / torch.distributed.get_world_size()).backward()
        return loss.detach()

    return forward_and_backward


def _with_estimates(step: Step) -> Step:
    """``step``, which may compile; the bucketing asks for a GPU's bandwidth, and uses no answer."""

    def with_estimates(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with _no_roofline():
            return step(tokens, targets)

    return with_estimates


@contextmanager
def _no_roofline() -> Iterator[None]:
    from torch._inductor.fx_passes import overlap_scheduling

    with patch.object(overlap_scheduling, "estimate_roofline_runtime_ms", lambda node: 0.0):
        yield


SYSTEMS: dict[str, Builder] = {
    "SimpleFSDP": _simple_fsdp(reshard=True),
    "SimpleFSDP, gathers once": _simple_fsdp(reshard=False),
    "graph_trainer": _graph_trainer(reshard=True),
    "graph_trainer, gathers once": _graph_trainer(reshard=False),
}
