"""Level 2: the whole step is compiled, forward, backward and update, as one graph.

    python examples/level2.py
    torchrun --nproc-per-node=2 examples/level2.py

The loss leaves the step detached, since backward has used up its graph.
"""

import argparse
import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

import zc


def main() -> None:
    args = parse_arguments()
    if "RANK" in os.environ:  # started by torchrun
        dist.init_process_group("gloo", timeout=timedelta(minutes=2))
    rank = dist.get_rank() if dist.is_initialized() else 0

    torch.manual_seed(0)
    model = zc.shard(nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 1)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)  # built after zc.shard

    @torch.compile(backend="zero", options={"passes": "zero3", "executor": args.executor})
    def train_step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = (model(x) - y).square().mean()
        loss.backward()
        zc.step(optimizer)
        return loss.detach()

    batches = torch.Generator().manual_seed(rank)
    for step in range(1, args.steps + 1):
        x = torch.randn(32, 8, generator=batches)
        loss = train_step(x, x.square().sum(1, keepdim=True))
        if rank == 0 and step % 10 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    if dist.is_initialized():
        dist.destroy_process_group()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="level 2: compile the step")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--executor", default="inductor", choices=["inductor", "interpret"])
    return parser.parse_args()


if __name__ == "__main__":
    main()
