"""The benchmark of cold and warm starts: its table, and a start of a tiny model."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmark_runs import benchmarks_on_path


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


def test_a_tiny_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import cold_start

    options = [
        "--layers=1", "--width=32", "--length=4", "--ranks=2", "--executor=interpret",
        "--processes=2", "--systems", "zc, zero3", f"--out={tmp_path}",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["cold_start.py", *options])
    cold_start.main()
    assert "| zc, zero3 |" in capsys.readouterr().out
    ((cold, warm),) = json.loads((tmp_path / "cold_start.json").read_text())["zc, zero3"]
    assert cold["compiled"] == warm["compiled"] == 0
    assert {"Dynamo", "capture", "verification", "AOTAutograd"} <= set(warm["parts"])


def test_a_start_that_fails(tmp_path: Path):
    import cold_start

    args = cold_start.parse_arguments(["--width=8"])
    with pytest.raises(SystemExit, match=r"^zc, zero3 failed$"):
        cold_start.start("zc, zero3", args, str(tmp_path))
