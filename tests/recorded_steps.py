"""Training steps for recorded loops: compiled plainly and with ``cuda_graph``, and compared."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import zc

STEPS = 20
FP16_OVERFLOW = 2.0**19  # an initial loss scale that overflows for some steps


class Model(nn.Module):
    """Dropout draws random numbers, the norm writes to buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Dropout(0.1), nn.Linear(8, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Training:
    """A model with optimizer, schedule and scaler, and the steps below.

    Args:
        kind: of step, a name in ``KINDS``.
        device: of the model.
        shard: converts the model.
        options: of the backend.
    """

    def __init__(self, kind: str, device: str, options: dict[str, Any], shard: Any = None) -> None:
        torch._dynamo.reset()
        torch.manual_seed(0)
        self.device = device
        self.model = (shard or (lambda model: model))(Model().to(device))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda n: 1 / (1 + n))
        self.scaler = torch.amp.GradScaler(device, init_scale=FP16_OVERFLOW, growth_interval=3)
        body = KINDS[kind]
        self.step = torch.compile(
            lambda x, y: body(self, x, y), backend="zero", options={"verify": False} | options
        )

    def run(self, first: int = 0, steps: int = STEPS) -> list[torch.Tensor]:
        """The loss of each step, looked at when all are done."""
        generator = torch.Generator().manual_seed(first)
        torch.manual_seed(first)
        losses = []
        for _ in range(steps):
            x = torch.randn(6, 4, generator=generator).to(self.device)
            losses.append(self.step(x, x.sum(1, keepdim=True)))
            self.schedule.step()
        return losses

    def state(self) -> list[torch.Tensor]:
        """All that training changes."""
        found = [*self.model.state_dict().values()]
        for entries in self.optimizer.state_dict()["state"].values():
            found += [value for value in entries.values() if isinstance(value, torch.Tensor)]
        found = [getattr(value, "to_local", lambda value=value: value)() for value in found]
        return [*found, torch.tensor(self.scaler.get_scale())]

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (self.model(x) - y).square().mean()


def _plain(train: Training, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    loss = train.loss(x, y)
    loss.backward()
    zc.step(train.optimizer)
    return loss.detach()


def _in_parts(train: Training, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    def part(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = train.loss(x, y)
        loss.backward()
        return loss.detach()

    loss = zc.microbatches(part, 2, x, y, reduce="mean")
    torch.nn.utils.clip_grad_norm_(train.model.parameters(), 1.0)
    zc.step(train.optimizer)
    return loss


def _scaled(train: Training, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    with torch.autocast(train.device, torch.float16):
        loss = train.loss(x, y)
    zc.scale(loss, train.scaler).backward()
    zc.step(train.optimizer, train.scaler)
    return loss.detach()


KINDS: dict[str, Callable[[Training, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "plain": _plain,
    "in_parts": _in_parts,
    "scaled": _scaled,
}


def equal(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    """Whether all values are the same bits."""
    return all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))
