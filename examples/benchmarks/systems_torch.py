"""Systems that come with PyTorch: DistributedDataParallel, ZeroRedundancyOptimizer, FSDP2.

Each is set up as its documentation recommends: DDP around the whole model and compiled from
outside; FSDP2's ``fully_shard`` on every block and on the model, each block compiled by itself. Two
systems more say what a step costs without a group: they train on each rank's own batch.
"""

import torch
from systems import (
    GPT,
    SETTINGS,
    Builder,
    Trained,
    adamw,
    around,
    backend,
    data_parallel_mesh,
    stepping,
)
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

BASELINE = "DDP eager"
ALONE = "no communication, "
FLOOR = f"{ALONE}compiled"


def _alone(compiled: bool) -> Builder:
    def build(model: GPT, executor: str) -> Trained:
        run = torch.compile(model, backend=backend(executor)) if compiled else model
        return Trained(model, stepping(around(run), adamw(model)))

    return build


def _ddp(compiled: bool) -> Builder:
    def build(model: GPT, executor: str) -> Trained:
        wrapped = DistributedDataParallel(model, broadcast_buffers=False)
        run = torch.compile(wrapped, backend=backend(executor)) if compiled else wrapped
        return Trained(wrapped, stepping(around(run), adamw(wrapped)))

    return build


def _zero_redundancy(compiled: bool) -> Builder:
    """DDP, and the optimizer's state shared out among the ranks by whole parameters."""

    def build(model: GPT, executor: str) -> Trained:
        from torch.distributed.optim import ZeroRedundancyOptimizer  # warns when it is imported

        wrapped = DistributedDataParallel(model, broadcast_buffers=False)
        run = torch.compile(wrapped, backend=backend(executor)) if compiled else wrapped
        optimizer = ZeroRedundancyOptimizer(
            wrapped.parameters(), torch.optim.AdamW, **SETTINGS, fused=True
        )
        return Trained(wrapped, stepping(around(run), optimizer))

    return build


def _fsdp2(compiled: bool, reshard: bool) -> Builder:
    """ZeRO-3, or with ``reshard`` off ZeRO-2: what forward gathers is kept for backward."""

    def build(model: GPT, executor: str) -> Trained:
        if compiled:
            for block in model.blocks:
                block.compile(backend=backend(executor))
        _shard_blocks(model, reshard)
        return Trained(model, stepping(around(model), adamw(model)))

    return build


def _shard_blocks(model: GPT, reshard: bool) -> None:
    mesh = data_parallel_mesh()
    modules: list[nn.Module] = [*model.blocks, model]
    for module in modules:
        # Left to itself, FSDP2 keeps what the outermost module gathers.
        fully_shard(module, mesh=mesh, reshard_after_forward=reshard and module is not model)


SYSTEMS: dict[str, Builder] = {
    BASELINE: _ddp(compiled=False),
    "DDP compiled": _ddp(compiled=True),
    f"{ALONE}eager": _alone(compiled=False),
    FLOOR: _alone(compiled=True),
    "ZeroRedundancyOptimizer eager": _zero_redundancy(compiled=False),
    "ZeroRedundancyOptimizer compiled": _zero_redundancy(compiled=True),
    "FSDP2 eager": _fsdp2(compiled=False, reshard=True),
    "FSDP2 compiled": _fsdp2(compiled=True, reshard=True),
    "FSDP2 eager, gathers once": _fsdp2(compiled=False, reshard=False),
    "FSDP2 compiled, gathers once": _fsdp2(compiled=True, reshard=False),
}
