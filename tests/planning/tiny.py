"""Models for ``zc plan``, as a user would name them: ``planning.tiny:build``."""

import torch
from torch import nn


class Tiny(nn.Module):
    """Two layers on sequences of 8 numbers; says itself what its inputs are."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 64)
        self.down = nn.Linear(64, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.tanh(self.up(x))).square().mean()

    def example_inputs(self, batch: int, sequence: int) -> tuple[torch.Tensor, ...]:
        return (torch.zeros(batch, sequence, 8),)


class Lines(nn.Module):
    """Takes tokens and targets, and returns its loss as an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 64)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> "Lines.Result":
        logits = self.embedding(tokens) @ self.embedding.weight.t()
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return self.Result(loss)

    class Result:
        def __init__(self, loss: torch.Tensor) -> None:
            self.loss = loss


def build() -> nn.Module:
    return Tiny()


def build_lines() -> nn.Module:
    return Lines()


def build_wrong() -> list[int]:
    return [1]


def build_other_shapes() -> nn.Module:
    model = Tiny()
    model.example_inputs = lambda batch, sequence: (torch.zeros(batch, 7),)  # type: ignore
    return model
