"""Late-bound state: values that programs read at each call and Dynamo never sees."""

from collections.abc import Callable

import torch

_READERS: dict[str, Callable[[], torch.Tensor]] = {}


def provide_state(name: str, read: Callable[[], torch.Tensor]) -> None:
    """Say where the entry ``name`` of every state table is read from at each call."""
    _READERS[name] = read


def read_state(name: str) -> torch.Tensor:
    """The current value of ``name``."""
    return _READERS[name]()


def draw_seed() -> torch.Tensor:
    """A fresh seed from torch's default generator, so that ``torch.manual_seed`` decides it."""
    return torch.randint(2**62, (), dtype=torch.int64)


provide_state("seed", draw_seed)
