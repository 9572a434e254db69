"""What the README shows is what happens: its code runs, its excerpts are in the dump."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from kernel_specs import spec
from zc.codegen.triton_target import render_triton

from zc.pipelines.discovery import pass_class, pass_names, summary_of
from zc.pipelines.pipeline import PassPipeline
from zc.torch_private import SUPPORTED

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
END = """
if dist.is_initialized():
    dist.destroy_process_group()  # or a thread of gloo's may outlive the interpreter
"""
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def run(script: str, folder: Path, *launcher: str, programs: int = 1) -> Path:
    """Run ``script`` node by node with a dump; the folder of the last of its programs."""
    interpreted = re.sub(r'("passes": "zero\d")', r'\1, "executor": "interpret"', script)
    (folder / "train.py").write_text(interpreted + END)
    environment = os.environ | {"ZC_DUMP": "dump", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, *launcher, "train.py"],
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = sorted((folder / "dump").glob("*/"))
    assert len(found) == programs
    return found[-1]


def test_level_1_on_one_process(tmp_path: Path):
    setup, level1, _ = blocks("python")
    run(setup + level1, tmp_path)


def test_level_2_on_two_processes_gives_the_printed_programs(tmp_path: Path):
    setup, _, level2 = blocks("python")
    program = run(setup + level2, tmp_path, *TORCHRUN)
    before, after = blocks("text")
    for excerpt, name in ((before, "00-capture.ir"), (after, "03-clean_graph.ir")):
        lines = iter((program / name).read_text().splitlines())
        missing = [line for line in excerpt.splitlines() if line not in lines]  # in this order
        assert missing == [], name


def test_level_1_with_a_compiled_update(tmp_path: Path):
    setup, level1, _ = blocks("python")
    update, *_ = blocks("py")
    run(setup + update + level1, tmp_path, programs=2)


def test_parts_of_a_batch_and_fp16(tmp_path: Path):
    setup, *_ = blocks("python")
    _, parts, fp16, _ = blocks("py")
    run(setup + parts + fp16, tmp_path, programs=2)


def test_the_kernel_is_what_is_rendered():
    *_, kernel = blocks("py")
    assert kernel in render_triton(replace(spec("adamw"), name="adamw"))


def test_the_pass_pipeline_is_right(tmp_path: Path):
    (text,) = blocks("yaml")
    (tmp_path / "mine.yaml").write_text(text)
    assert [p.name for p in PassPipeline.resolve(str(tmp_path / "mine.yaml")).passes] == [
        "shard_params",
        "shard_update",
        "clean_graph",
        "lower_update",
    ]


@pytest.mark.parametrize("name", pass_names())
def test_every_pass_is_listed(name: str):
    cls = pass_class(name)
    assert f"| `{name}` | {cls.kind} | {summary_of(cls)} |" in README


def test_supported_versions():
    lowest, highest = (".".join(map(str, version)) for version in SUPPORTED)
    assert f"PyTorch {lowest} to {highest}" in README


def test_every_example_is_listed():
    helpers = {"gpt.py", "corpus.py", "display.py", "measure.py"}
    for path in (ROOT / "examples").glob("*.py"):
        assert path.name in helpers or f"`{path.name}`" in README, path.name
