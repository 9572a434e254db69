"""A small GPT on bytes: pre-norm blocks, rotary positions, the input embedding tied to the output.

Ordinary PyTorch for one device; nothing here knows of zc.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

BYTES = 256


@dataclass(frozen=True)
class Config:
    """Sizes of a GPT; these give 10.7 million parameters."""

    layers: int = 6
    heads: int = 6
    width: int = 384
    context: int = 256  # longest sequence, in bytes


class GPT(nn.Module):
    """Logits of the next byte, or with ``targets`` the mean cross-entropy in nats."""

    cosines: torch.Tensor
    sines: torch.Tensor

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(BYTES, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, BYTES, bias=False)
        self.head.weight = self.embedding.weight
        cosines, sines = rotary_table(config.context, config.width // config.heads)
        self.register_buffer("cosines", cosines, persistent=False)
        self.register_buffer("sines", sines, persistent=False)
        self.apply(initialize)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        """Read ``tokens``, ``[batch, length]``; targets have the same shape."""
        length = tokens.shape[1]
        rotation = self.cosines[:length], self.sines[:length]
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, rotation)
        logits = self.head(self.norm(x))
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Block(nn.Module):
    """Attention and a two-layer network, each added to what comes in."""

    def __init__(self, config: Config):
        super().__init__()
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.project = nn.Linear(config.width, config.width, bias=False)
        self.norm2 = nn.LayerNorm(config.width)
        self.up = nn.Linear(config.width, 4 * config.width, bias=False)
        self.down = nn.Linear(4 * config.width, config.width, bias=False)

    def forward(self, x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """``[batch, length, width]`` to the same shape."""
        x = x + self.attend(self.norm1(x), rotation)
        return x + self.down(F.gelu(self.up(self.norm2(x))))

    def attend(self, x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Causal self-attention: ``[batch, length, width]`` to the same shape."""
        batch, length, width = x.shape
        heads = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        query, key = rotate(query, *rotation), rotate(key, *rotation)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.project(mixed.transpose(1, 2).reshape(batch, length, width))


def initialize(module: nn.Module) -> None:
    """Small normal weights, as GPT-2 starts."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)


def rotary_table(length: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines ``[length, width / 2]`` of rotary positions (arXiv:2104.09864, eq. 15)."""
    frequencies = 10000.0 ** (-torch.arange(0, width, 2) / width)
    angles = torch.outer(torch.arange(length), frequencies)
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Turn the two halves of each head against each other by an angle that grows with position."""
    first, second = x.chunk(2, dim=-1)
    turned = first * cosines - second * sines, first * sines + second * cosines
    return torch.cat(turned, dim=-1).to(x.dtype)  # the table may be wider


@torch.no_grad()
def generate(model: GPT, prompt: bytes, count: int, temperature: float = 0.8) -> bytes:
    """``prompt`` and ``count`` sampled bytes after it; draws from torch's global generator."""
    tokens = torch.tensor([list(prompt)])
    for _ in range(count):
        logits = model(tokens[:, -model.config.context :])[:, -1] / temperature
        chosen = torch.multinomial(logits.softmax(-1), 1)
        tokens = torch.cat([tokens, chosen], dim=1)
    return bytes(tokens[0].tolist())
