"""Sharded models, run uncompiled, train as ``DistributedDataParallel`` does."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from multiprocess import run_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_, parametrizations

from zc.state.checkpoint import full_state_dict
from zc.state.shard import shard

STEPS = 3
RATE = 1e-2


class Odd(nn.Module):
    """Uneven, tiny, 0-d, empty, tied, frozen, integer and shared parameters, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.block = nn.Linear(6, 6)
        self.again = self.block
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.frozen = nn.Parameter(torch.randn(7, 6), requires_grad=False)
        self.steps = nn.Parameter(torch.arange(40), requires_grad=False)
        self.norm = nn.BatchNorm1d(6)
        self.wide = nn.Parameter(torch.randn(1, 2, 33))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.again(self.block(self.embed(x).mean(1))))
        x = x + self.frozen.sum(0) * 0.1 + self.wide.mean() + self.steps.sum() / 1e3
        return self.head(x) * self.scale + self.empty.sum()


class Listed(nn.Module):
    """Parameters in lists and dictionaries, and weights read by a parent."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(4, 4)) for _ in range(2)])
        self.named = nn.ParameterDict({"bias_like": nn.Parameter(torch.randn(9, 4))})
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for weight in self.weights:
            x = torch.tanh(x @ weight)
        return nn.functional.linear(x, self.linear.weight) @ self.named["bias_like"].t()


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 4)

    def inner(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(torch.tanh(self.a(x)), self.b.weight, self.b.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=False)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class Recurrent(nn.Module):
    def __init__(self, kind: Callable[..., nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = kind(4, 5, num_layers=2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(x)[0]


def parametrized() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))
    parametrizations.weight_norm(model[0])
    parametrizations.orthogonal(model[1])
    return model


def tokens(rank: int) -> torch.Tensor:
    return torch.randint(11, (5, 3), generator=torch.Generator().manual_seed(rank))


def numbers(*shape: int) -> Callable[[int], torch.Tensor]:
    return lambda rank: torch.randn(shape, generator=torch.Generator().manual_seed(rank))


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], torch.Tensor]]] = {
    "odd": (Odd, tokens),
    "listed": (Listed, numbers(3, 4)),
    "checkpointed": (Checkpointed, numbers(3, 4)),
    "attention": (Attention, numbers(2, 3, 8)),
    "lstm": (lambda: Recurrent(nn.LSTM), numbers(2, 3, 4)),
    "gru": (lambda: Recurrent(nn.GRU), numbers(2, 3, 4)),
    "parametrized": (parametrized, numbers(3, 4)),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU()), numbers(2, 3, 5, 5)),
}


def train(model: nn.Module, batch: torch.Tensor) -> tuple[list[float], list[float]]:
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=RATE, eps=1e-5)
    losses, norms = [], []
    for _ in range(STEPS):
        loss = model(batch).square().mean()
        loss.backward()
        norms.append(float(_whole(clip_grad_norm_(params, 1.0))))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, norms


def _whole(value: torch.Tensor) -> torch.Tensor:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def check_case(rank: int, name: str) -> None:
    build, batch = CASES[name]
    torch.manual_seed(rank)  # ranks start from different values: those of rank 0 count
    model = build()
    reference = copy.deepcopy(model)
    replica = DistributedDataParallel(
        reference, broadcast_buffers=False, find_unused_parameters=True
    )
    names = list(reference.state_dict())
    shard(model)
    assert list(model.state_dict()) == names
    expected = train(replica, batch(rank))
    found = train(model, batch(rank))
    assert found[0] == pytest.approx(expected[0], rel=1e-5), name
    assert found[1] == pytest.approx(expected[1], rel=1e-5), name
    with torch.no_grad():  # the fast paths of attention are taken here
        evaluated = model.eval()(batch(rank))
        torch.testing.assert_close(evaluated, reference.eval()(batch(rank)), rtol=1e-3, atol=1e-3)
    full = full_state_dict(model)
    assert list(full) == (names if rank == 0 else [])
    for key, value in full.items():
        assert_trained_alike(key, value, reference.state_dict()[key])


def assert_trained_alike(name: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    """Up to 1e-2 of an AdamW step: Adam scales up gradients that are only rounding."""
    found, expected = found.double(), expected.double()
    allowed = 1e-5 * expected.norm() + 1e-2 * RATE * expected.numel() ** 0.5
    assert (found - expected).norm() <= allowed, name


def check_all(rank: int, world: int, names: list[str]) -> None:
    warnings.simplefilter("ignore")  # DDP warns about parameters that it finds used after all
    for name in names:
        check_case(rank, name)


@pytest.mark.parametrize("world", [2, 4])
def test_training_equals_data_parallel(world):
    run_ranks(check_all, world, list(CASES), timeout=120)
