"""Programs for 1,024 ranks, made in one process without any of their parameters."""

import gc
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tracing import program_of

from zc.pipelines.manager import run_passes
from zc.pipelines.pipeline import PassPipeline

WORLD = 1024
SECONDS, BYTES = 300, 4 * 2**30
DEPTH_RATIO = 5  # t(4 n layers) / t(n layers) of passes: near-linear
CHILD = Path(__file__).with_name("capture_gpt.py")


def capture_gpt(folder: Path, layers: int, width: int, heads: int, context: int) -> dict[str, Any]:
    """Figures of a GPT captured, passed, verified and dumped in a process of its own."""
    sizes = map(str, (WORLD, layers, width, heads, context))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(CHILD), str(folder), *sizes],
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def check_dump(folder: Path, parameters: int) -> None:
    (report,) = folder.glob("*/report.json")
    figures = json.loads(report.read_text())
    assert figures["world"] == WORLD
    assert figures["totals"]["parameters"] == parameters
    assert figures["totals"]["replicated_share"] <= 0.01
    assert "norm.weight" in figures["totals"]["replicated"]
    assert {row["op"] for row in figures["passes"][-1]["collectives"]} >= {"all_gather"}


def test_a_gpt_for_1024_ranks_is_captured_without_memory(tmp_path: Path) -> None:
    found = capture_gpt(tmp_path, 4, 1024, 8, 256)
    check_dump(tmp_path, found["parameters"])
    assert found["parameters"] > 50e6
    check_work(found)


def check_work(found: dict[str, Any]) -> None:
    """No parameter has memory, and backward differentiates every product of forward."""
    assert found["allocated"] == 0
    forward, backward = found["flops"]["forward"], found["flops"]["backward"]
    assert 1.9 * forward < backward < 2.2 * forward


@pytest.mark.matrix
@pytest.mark.timeout(900)
def test_a_gpt_of_48_layers_takes_five_minutes_and_four_gigabytes(tmp_path: Path) -> None:
    found = capture_gpt(tmp_path, 48, 1632, 24, 1024)
    check_dump(tmp_path, found["parameters"])
    assert found["parameters"] > 1.5e9
    check_work(found)
    assert found["cpu_seconds"] <= SECONDS
    assert found["peak_rss_bytes"] <= BYTES


@pytest.mark.matrix
@pytest.mark.timeout(900)
def test_passes_take_near_linear_time_in_the_layers_of_a_gpt(tmp_path: Path) -> None:
    few = capture_gpt(tmp_path / "24", 24, 64, 4, 32)
    many = capture_gpt(tmp_path / "96", 96, 64, 4, 32)
    assert many["pass_seconds"] <= DEPTH_RATIO * few["pass_seconds"]
    assert many["verify_seconds"] <= DEPTH_RATIO * few["verify_seconds"]


def chain(layers: int) -> Any:
    """The logical program of a network of ``layers`` weights and biases."""
    shapes: Any = {}
    for i in range(layers):
        shapes |= {f"w{i}": (32, 32), f"b{i}": (32,)}

    def loss(p: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
        y = x["x"]
        for i in range(layers):
            y = torch.tanh(y @ p[f"w{i}"].t() + p[f"b{i}"])
        return y.sum()

    return program_of(loss, shapes, {"x": (4, 32)})


def seconds(layers: int, *, verify: bool) -> float:
    """CPU seconds that the passes of zero3 take."""
    program = chain(layers)
    gc.collect()
    gc.disable()  # a collection in the middle costs by all that other tests left behind
    start = time.process_time()
    run_passes(program, PassPipeline.builtin("zero3"), verify=verify)
    took = time.process_time() - start
    gc.enable()
    return took


@pytest.mark.parametrize("verify", [False, True])
def test_passes_take_near_linear_time_in_depth(verify: bool) -> None:
    """The best of three runs each, in turn: what else runs on the machine slows down both."""
    pairs = [[seconds(layers, verify=verify) for layers in (24, 96)] for _ in range(3)]
    few, many = (min(found) for found in zip(*pairs, strict=True))
    assert many <= DEPTH_RATIO * few
