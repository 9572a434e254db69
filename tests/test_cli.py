"""The command line: what it prints where, and its exit status."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from zc.cli import main, write_file
from zc.errors import PipelineError
from zc.pipelines.describe import describe_passes


def test_passes_prints_every_pass(capsys: pytest.CaptureFixture[str]):
    assert main(["passes"]) == 0
    assert capsys.readouterr() == (describe_passes(), "")


def test_check_counts_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "one.yaml"
    path.write_text("passes: [shard_params]")
    assert main(["check", str(path), "zero3"]) == 0
    assert capsys.readouterr() == (f"{path}: ok, 1 pass\nzero3: ok, 11 passes\n", "")


def test_check_goes_on_after_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    wrong, right = tmp_path / "wrong.yaml", tmp_path / "right.yaml"
    wrong.write_text("passes:\n  - shard_parms\n")
    right.write_text("passes: [shard_params]")
    assert main(["check", str(wrong), str(right)]) == 1
    assert capsys.readouterr() == (
        f"{right}: ok, 1 pass\n",
        f"{wrong}:2: no pass named 'shard_parms'; did you mean 'shard_params'?\n",
    )


def test_an_error_of_zc_is_printed_without_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("zc.pipelines.describe.pass_names", lambda: ("lower_2d",))
    assert main(["passes"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("zc.passes.lower_2d: the name of a pass is words")


def test_a_file_that_cannot_be_written(tmp_path: Path):
    path = tmp_path / "no" / "mine.yaml"
    with pytest.raises(PipelineError) as caught:
        write_file(path, "")
    assert str(caught.value) == f"{path}: cannot be written: No such file or directory"


def test_version(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"zc {version('zc')}\n"


def test_no_command_shows_usage(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert "the following arguments are required: COMMAND" in capsys.readouterr().err


def test_it_runs_as_a_module():
    command = [sys.executable, "-m", "zc", "check", "nowhere.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "nowhere.yaml: no such file; the built-in pass pipelines are zero0, zero1, zero2, zero3\n"
    )


@pytest.mark.parametrize(
    "path",
    sorted((Path(__file__).parents[1] / "examples" / "pipelines").glob("*.yaml")),
    ids=lambda path: path.name,
)
def test_example_pass_pipelines_are_right(path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["check", str(path)]) == 0
