"""Every example runs, on one process and on two, and learns; each in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
SECONDS = 120


@pytest.fixture(autouse=True)
def _programs_were_captured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What silently ran without zc would pass every other check."""
    dump = tmp_path / "captured"
    monkeypatch.setenv("ZC_DUMP", str(dump))
    yield
    assert any(dump.rglob("00-capture.ir"))


def run(*command: str) -> str:
    """Standard output of ``python *command`` in the root of the repository."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def losses(output: str) -> list[float]:
    return [float(x) for x in re.findall(r"loss ([\d.]+)", output)]


@pytest.mark.parametrize(
    "command",
    ["level1.py", "level1.py --compile-update", "level2.py", "single_process.py", "huggingface.py"],
)
def test_on_one_process(command: str):
    script, *options = command.split()
    options += ["--executor=interpret", "--steps=20"]
    first, second = losses(run(f"examples/{script}", *options))
    assert second < first


def test_levels_give_the_same_losses_on_two_processes():
    options = ("--executor=interpret", "--steps=20")
    level1 = run(*TORCHRUN, "examples/level1.py", *options)
    level2 = run(*TORCHRUN, "examples/level2.py", *options)
    assert level1 == level2
    first, second = losses(level1)
    assert second < first


def test_hugging_face_on_two_processes():
    options = ("--executor=interpret", "--steps=20")
    first, second = losses(run(*TORCHRUN, "examples/huggingface.py", *options))
    assert second < first


def test_resuming_on_one_process_what_two_have_saved(tmp_path: Path):
    options = ("--executor=interpret", f"--folder={tmp_path / 'saved'}")
    before = run(*TORCHRUN, "examples/resume.py", *options, "--steps=3")
    after = run("examples/resume.py", *options, "--steps=6")
    assert after.startswith("step 4:")
    without_break = run(
        "examples/resume.py", "--executor=interpret", f"--folder={tmp_path / 'other'}", "--steps=6"
    )
    # 1e-4 is the last printed digit; the means of two halves and of the whole round differently
    assert losses(before + after) == pytest.approx(losses(without_break), abs=2e-4)


def test_the_demo(tmp_path: Path):
    out = run(
        *("examples/demo.py", "--executor=interpret", "--layers=1", "--steps=3", "--rows=1"),
        *("--length=32", "--sample=8", f"--out={tmp_path / 'captured'}"),
    )
    line = r"^first step \d+ s: 0 distinct regions, 0 compiled, 0 loaded from disk$"  # interpret
    assert re.search(line, out, re.MULTILINE)
    assert "3/3" in out
    assert "validation loss" in out
    assert re.search(r"bytes per parameter +16\.0 +8\.0\n", out)
    assert (tmp_path / "captured" / "loss.png").stat().st_size > 10_000
    (report,) = tmp_path.glob("captured/dump/*/report.html")
    assert str(report) in out
    (program,) = tmp_path.glob("captured/dump/*/*-lower_update.ir")
    _, update = program.read_text().split("-- update --")
    assert update.count("zc.fused_update") == 1
    assert "zc.fused_update" in report.read_text()
