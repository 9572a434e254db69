"""A Hugging Face model, as it comes: a small Llama with random weights, so nothing is downloaded.

    python examples/huggingface.py
    torchrun --nproc-per-node=2 examples/huggingface.py

It learns to continue sequences that count upwards. Gradients are clipped inside the compiled step.
"""

import argparse
import os
from datetime import timedelta

import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

import zc

VOCABULARY = 64


def main() -> None:
    args = parse_arguments()
    if "RANK" in os.environ:  # started by torchrun
        dist.init_process_group("gloo", timeout=timedelta(minutes=2))
    rank = dist.get_rank() if dist.is_initialized() else 0

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, use_cache=False,
    )  # fmt: skip
    model = zc.shard(LlamaForCausalLM(config))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    @torch.compile(backend="zero", options={"passes": "zero3", "executor": args.executor})
    def train_step(tokens: torch.Tensor) -> torch.Tensor:
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        zc.step(optimizer)
        return loss.detach()

    batches = torch.Generator().manual_seed(rank)
    for step in range(1, args.steps + 1):
        starts = torch.randint(VOCABULARY, (8, 1), generator=batches)
        tokens = (starts + torch.arange(16)) % VOCABULARY
        loss = train_step(tokens)
        if rank == 0 and step % 10 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    if dist.is_initialized():
        dist.destroy_process_group()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="train a Hugging Face model")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--executor", default="inductor", choices=["inductor", "interpret"])
    return parser.parse_args()


if __name__ == "__main__":
    main()
