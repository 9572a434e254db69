"""One process, no process group: the same line of code, nothing to shard and nothing to send.

    python examples/single_process.py

Prints the program first: forward, backward, and the update as one generated kernel.
"""

import argparse

import torch
from torch import nn

import zc


def main() -> None:
    args = parse_arguments()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def train_step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = (model(x) - y).square().mean()
        loss.backward()
        zc.step(optimizer)
        return loss.detach()

    print(zc.capture(train_step, torch.randn(32, 8), torch.randn(32, 1), passes="zero0"))

    options = {"passes": "zero0", "executor": args.executor}
    compiled = torch.compile(train_step, backend="zero", options=options)
    for step in range(1, args.steps + 1):
        x = torch.randn(32, 8)
        loss = compiled(x, x.square().sum(1, keepdim=True))
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.3f}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="train and look at the program, on one process")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--executor", default="inductor", choices=["inductor", "interpret"])
    return parser.parse_args()


if __name__ == "__main__":
    main()
