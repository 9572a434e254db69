"""What was compiled, and what is in the folder of compiled regions."""

from pathlib import Path
from typing import Any

import pytest

import zc.run.compile
from zc import torch_private
from zc.run.region_files import region_folder

TWO = {"w0": (16, 16), "w1": (16, 16)}


def files() -> list[Path]:
    return [path for path in region_folder().iterdir() if not path.suffix]


def compiling(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows with every region that is compiled and not loaded."""
    calls: list[Any] = []
    compile_region = torch_private.compile_region
    monkeypatch.setattr(
        torch_private, "compile_region", lambda *a: calls.append(a) or compile_region(*a)
    )
    return calls


def start_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process has compiled is forgotten."""
    monkeypatch.setattr(zc.run.compile, "_compiled", {})
    monkeypatch.setattr(zc.run.compile, "_new", set())
