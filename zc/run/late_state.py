"""Late-bound state: values that programs read at each call and Dynamo never sees."""

from typing import Any

import torch


class Cell:
    """Where a loop reads one entry of the state table; whoever owns the entry puts it there."""

    value: Any

    def __init__(self, value: Any = None) -> None:
        self.value = value


class SeedCell:
    """A fresh seed at each read, from torch's default generator: ``torch.manual_seed`` decides."""

    @property
    def value(self) -> torch.Tensor:
        """The seed of one call."""
        return torch.randint(2**62, (), dtype=torch.int64)


CELLS: dict[str, Any] = {"seed": SeedCell()}
