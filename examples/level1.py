"""Level 1: the model is compiled; ``loss.backward()`` and ``optimizer.step()`` stay as they are.

    python examples/level1.py
    torchrun --nproc-per-node=2 examples/level1.py

Every rank draws its own batch; gradients are averaged, as in DistributedDataParallel.
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
    options = {"passes": "zero3", "executor": args.executor}
    compiled = torch.compile(model, backend="zero", options=options)
    if args.compile_update:
        optimizer.step = zc.compile_step(optimizer, options)

    batches = torch.Generator().manual_seed(rank)
    for step in range(1, args.steps + 1):
        x = torch.randn(32, 8, generator=batches)
        loss = (compiled(x) - x.square().sum(1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if rank == 0 and step % 10 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    if dist.is_initialized():
        dist.destroy_process_group()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="level 1: compile the model")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--compile-update", action="store_true", help="optimizer.step, by itself")
    parser.add_argument("--executor", default="inductor", choices=["inductor", "interpret"])
    return parser.parse_args()


if __name__ == "__main__":
    main()
