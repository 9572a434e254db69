"""The benchmark of cold and warm starts: its table, and a start of a tiny model."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmark_runs import BENCHMARKS, benchmarks_on_path


@pytest.fixture(autouse=True)
def _benchmarks_on_path(monkeypatch: pytest.MonkeyPatch):
    with benchmarks_on_path(monkeypatch):
        yield


def figures(seconds: float, compiled: int, **parts: float) -> dict[str, Any]:
    return {"seconds": seconds, "cpu_seconds": 2 * seconds, "compiled": compiled, "parts": parts}


def test_medians_and_parts():
    import cold_start

    args = cold_start.parse_arguments(["--repeat=3", "--parts", "--layers=2"])
    starts = [(figures(cold, 5, Inductor=cold), figures(cold / 10, 0)) for cold in (30, 10, 20)]
    lines = cold_start.table(args, {"zc, zero3": starts}).splitlines()
    assert lines[2] == "| zc, zero3 | 20.0 | 40.0 | 5 | 2.0 | 4.0 | 0 |"
    assert "layers 2, width 256, ranks 8, starts 3" in lines[4]
    assert lines[-1] == "| zc, zero3 | Inductor | 20.00 | 0.00 |"


def test_a_tiny_start(tmp_path: Path):
    command = [
        sys.executable, str(BENCHMARKS / "cold_start.py"), "--layers=1", "--width=32", "--length=4",
        "--ranks=2", "--executor=interpret", "--processes=2", "--systems", "zc, zero3",
        f"--out={tmp_path}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    assert "| zc, zero3 |" in done.stdout
    ((cold, warm),) = json.loads((tmp_path / "cold_start.json").read_text())["zc, zero3"]
    assert cold["compiled"] == warm["compiled"] == 0
    assert {"Dynamo", "capture", "verification", "AOTAutograd"} <= set(warm["parts"])


def test_a_start_that_fails():
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "cold_start.py"), "--width=8", "--systems", "zc, zero3"],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.endswith("zc, zero3 failed\n")
