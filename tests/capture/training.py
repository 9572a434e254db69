"""A small model, trained by zc and by ``DistributedDataParallel`` in eager mode."""

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import zc

OPTIONS = {"passes": "zero3", "executor": "interpret"}
STAGE_3: list[Any] = [{"shard_params": {"zero_stage": 3}}, "shard_update", "clean_graph"]
PLAIN = {**OPTIONS, "passes": STAGE_3}  # every gather and reduction by itself
RATE, EPSILON = 1e-2, 1e-5
WORDS = 32
SIZES = ((3, 5),) * 3  # of the batches of three steps: sequences, words
Step = Callable[[torch.Tensor], torch.Tensor]


class Block(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.drop(self.down(F.gelu(self.up(self.norm(x)))))


class Net(nn.Module):
    """Embedding, block and head, with dropout, a graph break or checkpointing where asked."""

    def __init__(
        self, *, dropout: float = 0.0, breaks: bool = False, checkpointed: bool = False
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 16)
        self.block = Block(16, dropout)
        self.head = nn.Linear(16, WORDS, bias=False)
        self.breaks, self.checkpointed = breaks, checkpointed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        if self.breaks:
            torch._dynamo.graph_break()
        return self.head(self._hidden(x))

    def _hidden(self, x: torch.Tensor) -> torch.Tensor:
        if self.checkpointed:
            return checkpoint(self.block, x, use_reentrant=False)
        return self.block(x)


def new_net(**options: Any) -> Net:
    """The same weights every time."""
    torch.manual_seed(0)
    return Net(**options)


def batch(step: int, rank: int, sequences: int = 3, words: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randint(0, WORDS, (sequences, words), generator=generator)


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(x).flatten(0, 1).float(), x.flatten())


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), RATE, eps=EPSILON)


def precision(autocast: bool) -> Any:
    return torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()


def forward_and_backward(model: nn.Module, *, autocast: bool = False) -> Step:
    """An uncompiled step: loss and gradients."""

    def step(x: torch.Tensor) -> torch.Tensor:
        with precision(autocast):
            loss = loss_of(model, x)
        loss.backward()
        return loss.detach()

    return step


def compiled(model: nn.Module, level: int, *, autocast: bool = False, **options: Any) -> Step:
    """The same step, with the model (level 1) or all of it (level 2) compiled by zc."""
    settings: Any = {"backend": "zero", "options": OPTIONS, **options}
    if level == 1:
        return forward_and_backward(torch.compile(model, **settings), autocast=autocast)
    return torch.compile(forward_and_backward(model, autocast=autocast), **settings)


def train(
    model: nn.Module, step: Step, rank: int, sizes: Sequence[tuple[int, int]] = SIZES
) -> list[float]:
    """One AdamW step for each batch; returns the losses."""
    optimizer = adamw(model)
    losses = []
    for i, (sequences, words) in enumerate(sizes):
        losses.append(step(batch(i, rank, sequences, words)).item())
        optimizer.step()
        optimizer.zero_grad()
    return losses


def train_reference(
    model: nn.Module, rank: int, sizes: Sequence[tuple[int, int]] = SIZES, **options: Any
) -> list[float]:
    """Losses of ``DistributedDataParallel`` in eager mode, from a copy of ``model``."""
    replica = DistributedDataParallel(copy.deepcopy(model))
    return train(replica, forward_and_backward(replica, **options), rank, sizes)


def train_sharded(
    model: nn.Module,
    rank: int,
    level: int,
    sizes: Sequence[tuple[int, int]] = SIZES,
    **options: Any,
) -> list[float]:
    """Losses of zc, from a sharded copy of ``model``."""
    sharded = zc.shard(copy.deepcopy(model))
    return train(sharded, compiled(sharded, level, **options), rank, sizes)


def refusal_of(call: Callable[[], Any]) -> str:
    """``Class: message`` of the error of zc that ``call`` ends in."""
    try:
        call()
    except Exception as error:
        found = getattr(error, "inner_exception", None) or error
        return f"{type(found).__name__}: {found}"
    return "no error"


def place_of(function: Any) -> str:
    """The name that programs captured from ``function`` bear."""
    code = function.__code__
    return f"{code.co_filename.rsplit('/', 1)[-1]}:{code.co_firstlineno} {code.co_qualname}"
