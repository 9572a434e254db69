"""What zc does while an optimizer steps."""

from typing import Any

import pytest

from zc import torch_private
from zc.lowered_step import LoweredStep
from zc.run.variants import Variants


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What zc does: ``step`` for a call, ``trace`` of the optimizer, ``frame`` taken over."""
    found: list[str] = []

    def note(owner: Any, name: str, word: str) -> None:
        original = getattr(owner, name)

        def noted(*args: Any) -> Any:
            found.append(word)
            return original(*args)

        monkeypatch.setattr(owner, name, noted)

    note(LoweredStep, "__call__", "step")
    note(Variants, "trace", "trace")
    note(torch_private, "replace_frame", "frame")
    return found
