"""Save with ``torch.distributed.checkpoint`` and go on, with another number of processes.

    torchrun --nproc-per-node=2 examples/resume.py --steps 20
    python examples/resume.py --steps 40                        # goes on from step 20

A batch belongs to a step and is cut over the ranks, so the losses do not depend on their number.
"""

import argparse
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import zc

ROWS = 32


def main() -> None:
    args = parse_arguments()
    if "RANK" in os.environ:  # started by torchrun
        dist.init_process_group("gloo", timeout=timedelta(minutes=2))
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

    torch.manual_seed(0)
    model = zc.shard(nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 1)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    @torch.compile(backend="zero", options={"passes": "zero3", "executor": args.executor})
    def train_step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = (model(x) - y).square().mean()
        loss.backward()
        zc.step(optimizer)
        return loss.detach()

    saved = sorted(args.folder.glob("step-*/.metadata"))  # written last: the others are whole
    first = load(model, optimizer, saved[-1].parent) if saved else 0
    for step in range(first + 1, args.steps + 1):
        x = torch.randn(ROWS, 8, generator=torch.Generator().manual_seed(step))
        x = x.chunk(world)[rank]
        loss = train_step(x, x.square().sum(1, keepdim=True))
        if dist.is_initialized():
            dist.all_reduce(loss)
        if rank == 0:
            print(f"step {step}: loss {loss.item() / world:.4f}")
    if first < args.steps:
        save(model, optimizer, args.folder / f"step-{args.steps:06}", args.steps)

    if dist.is_initialized():
        dist.destroy_process_group()


def save(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, step: int) -> None:
    state = gather_state(model, optimizer, step)
    dcp.save(state, checkpoint_id=folder, no_dist=not dist.is_initialized())


def load(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> int:
    """Fill the model and the optimizer from ``folder``; the step at which it was saved."""
    state = gather_state(model, optimizer, 0)
    dcp.load(state, checkpoint_id=folder, no_dist=not dist.is_initialized())
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )
    return int(state["step"])


def gather_state(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> dict[str, Any]:
    model_state, optimizer_state = get_state_dict(model, optimizer)
    return {"model": model_state, "optimizer": optimizer_state, "step": torch.tensor(step)}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="save, and resume at another world size")
    parser.add_argument("--steps", type=int, default=20, help="the last step, counted from 1")
    parser.add_argument("--folder", type=Path, default=Path("out/resume"))
    parser.add_argument("--executor", default="inductor", choices=["inductor", "interpret"])
    return parser.parse_args()


if __name__ == "__main__":
    main()
