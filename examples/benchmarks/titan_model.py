"""A GPT as torchtitan 0.3.0 shards it.

The model's parts get the names that torchtitan's passes look for; the weight that is tied is tied
again after sharding, since every place gets a parameter of its own.
"""

import logging
from typing import Any
from unittest.mock import patch

import torch
from systems import GPT
from torch.distributed.device_mesh import init_device_mesh
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

_PARTS = {"embedding": "tok_embeddings", "blocks": "layers", "head": "lm_head"}


class Renamed(GPT):
    """A GPT whose parts are called as in torchtitan's models; its own names still work."""

    embedding = property(lambda self: self.tok_embeddings)
    blocks = property(lambda self: self.layers)
    head = property(lambda self: self.lm_head)


def rename(model: GPT) -> None:
    """Give the parts of ``model`` torchtitan's names."""
    model._modules = {_PARTS.get(name, name): part for name, part in model._modules.items()}
    model.__class__ = Renamed


def shard(model: GPT, reshard: bool) -> None:
    """Rename and shard ``model``; with ``reshard`` parameters are gathered again in backward."""
    from torchtitan.experiments.graph_trainer import simple_fsdp
    from torchtitan.tools.logging import logger

    logger.setLevel(logging.WARNING)
    rename(model)
    simple_fsdp._wrap_class_cache.clear()  # it would give this model the reads of an earlier one
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),), mesh_dim_names=("fsdp",))
    reads = simple_fsdp.ReplicateComputation
    reads = _gathering_again(reads) if reshard else reads
    with patch.object(simple_fsdp, "ReplicateComputation", reads):
        simple_fsdp.data_parallel(model, mesh, "fully_shard")
    model.head._parameters["weight"] = model.embedding._parameters["weight"]


def _gathering_again(reads: Any) -> Any:
    """Reads whose gathers are recomputed in backward, as torchtitan's earlier versions did it."""

    class GatheringAgain(reads):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(
                self.replicate_compute, x, use_reentrant=False, context_fn=_recompute_all
            )

    return GatheringAgain


def _recompute_all() -> Any:
    return create_selective_checkpoint_contexts(lambda *_, **__: CheckpointPolicy.MUST_RECOMPUTE)
