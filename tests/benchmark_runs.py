"""Benchmarks as tests run them: tiny, in a process of their own, and what they print."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "examples" / "benchmarks"
MODULES = (
    "gpt", "systems", "systems_torch", "systems_zc", "systems_titan", "titan_model",
    "systems_deepspeed", "catalogue", "sockets", "live_bytes", "starting", "rounds", "alone",
    "ranks", "slow_link", "summary", "table", "arguments", "train_step", "excerpt", "update",
    "prediction", "predict", "caps", "memory",
)  # fmt: skip


@contextmanager
def benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let tests import the modules of examples/benchmarks, which find one another by bare name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS.parent))
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


def run(script: str, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), "--executor=interpret", *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def parse(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [line.strip("| ").split(" | ") for line in lines]


def tiny(folder: Path, *options: str) -> tuple[str, dict[str, dict[str, Any]]]:
    """The output of a tiny comparison, and the figures of each system."""
    out = run("train_step.py", "--tiny", f"--out={folder}", *options)
    figures = json.loads((folder / "train_step.json").read_text())
    return out, {row["system"]: row for row in figures["systems"]}
