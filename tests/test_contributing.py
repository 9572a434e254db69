"""The worked example of CONTRIBUTING.md: its files, in a copy of the project, do what it says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HELPERS = ("conftest.py", "golden_helper.py", "tracing.py")
EXAMPLE = re.compile(r"^`([\w/.]+)`\n\n```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def example_files() -> dict[str, str]:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return {match[1]: match[2] for match in EXAMPLE.finditer(text)}


def write_copy(folder: Path) -> None:
    """The packages as they are installed, the helpers of the tests, and the example's files."""
    ignore = shutil.ignore_patterns("__pycache__")
    for source, target in (("zc", "zc"), ("passes", "zc/passes"), ("codegen", "zc/codegen")):
        shutil.copytree(ROOT / source, folder / target, ignore=ignore)
    (folder / "tests").mkdir()
    for name in HELPERS:
        shutil.copy(ROOT / "tests" / name, folder / "tests" / name)
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name, text in example_files().items():
        path = folder / re.sub(r"^passes/", "zc/passes/", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_worked_example(tmp_path: Path):
    write_copy(tmp_path)
    (test,) = (name for name in example_files() if name.startswith("tests/passes/"))
    (pipeline,) = (name for name in example_files() if name.endswith(".yaml"))
    assert "3 passed" in run(tmp_path, "-m", "pytest", test)
    assert run(tmp_path, "-m", "zc", "check", pipeline) == f"{pipeline}: ok, 3 passes\n"
    assert (
        "drop_unit_powers (optional)\n"
        "  Drop powers of one, which the backward of every square holds.\n"
    ) in run(tmp_path, "-m", "zc", "passes")


def test_the_worked_example_is_in_style(tmp_path: Path):
    write_copy(tmp_path)
    files = [re.sub(r"^passes/", "zc/passes/", n) for n in example_files() if n.endswith(".py")]
    ruff = str(Path(sys.executable).with_name("ruff"))
    for command in (("check", "--select=E,F,I,UP,B,PT,RUF,SIM"), ("format", "--check")):
        done = subprocess.run(
            [ruff, *command, *files], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout
