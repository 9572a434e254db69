"""Optimizers to compare with eager torch, and a model whose shapes are awkward to shard."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from update import third_party

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def of(name: str, **settings: Any) -> Make:
    """Builds ``torch.optim.<name>``; Muon gets the matrices alone, which is all it takes."""
    kind = getattr(torch.optim, name)

    def make(params: list[nn.Parameter]) -> torch.optim.Optimizer:
        given = [p for p in params if p.dim() == 2] if name == "Muon" else params
        return kind(given, **settings)

    return make


ELEMENTWISE: dict[str, Make] = {
    "sgd": of("SGD", lr=0.1),
    "sgd momentum": of("SGD", lr=0.1, momentum=0.9, dampening=0.1, weight_decay=0.1),
    "sgd nesterov": of("SGD", lr=0.1, momentum=0.9, nesterov=True),
    "adam": of("Adam"),
    "adam amsgrad": of("Adam", amsgrad=True, maximize=True, weight_decay=0.1),
    "adamw": of("AdamW"),
    "adamw tensor lr": lambda params: torch.optim.AdamW(params, lr=torch.tensor(1e-3)),
    "nadam": of("NAdam", weight_decay=0.1, decoupled_weight_decay=True),
    "radam": of("RAdam"),
    "adamax": of("Adamax"),
    "adagrad": of("Adagrad", lr_decay=0.1, initial_accumulator_value=0.1),
    "adadelta": of("Adadelta", lr=1.0),
    "rmsprop": of("RMSprop", momentum=0.9, centered=True),
    "asgd": of("ASGD", t0=3.0),
    "rprop": of("Rprop"),
}
THIRD_PARTY: dict[str, Make] = {
    "counting": third_party.Counting,
    "lookahead": third_party.Lookahead,
    "sign": third_party.Sign,
}
WHOLE: dict[str, Make] = {
    "adafactor": of("Adafactor", lr=0.1),
    "muon": of("Muon", lr=0.1),
    "lamb": third_party.Lamb,
    "global clip": third_party.GlobalClip,
    "by data": third_party.ByData,
}
ELEMENTWISE |= THIRD_PARTY


class Awkward(nn.Module):
    """Rows that no world divides, blocks that need padding, 0-d and tiny parameters, a tie."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(7, 10), nn.Linear(10, 7)
        self.even = nn.Linear(7, 16, bias=False)
        self.tied = nn.Linear(7, 10, bias=False)
        self.tied.weight = self.up.weight
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.one = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.up(x)) * self.scale
        back = self.down(hidden + self.tied(x)) * self.one
        return self.even(back)


def batch(step: int, rank: int) -> torch.Tensor:
    """The input of one rank at one step."""
    return torch.randn(4, 7, generator=torch.Generator().manual_seed(100 * step + rank))
