"""``zc.step(optimizer)``: the update at the end of a training step."""

import torch

from zc.state.optimizers import check_optimizer


@torch.compiler.disable
def step(optimizer: torch.optim.Optimizer) -> None:
    """Do ``optimizer.step(); optimizer.zero_grad()``.

    Raises:
        ShardError: when ``optimizer`` was built before ``zc.shard`` and would train nothing.
    """
    check_optimizer(optimizer)
    optimizer.step()
    optimizer.zero_grad()
