import json
import re
import stat
from pathlib import Path

import pytest
from debug.programs import GatherAll, LookAround, chain_step

from zc.debug import dump, files
from zc.debug.dump import DumpInstrument, draw_svg
from zc.debug.files import program_folder, write_text
from zc.debug.schema import problems
from zc.errors import ZcError
from zc.program.pass_base import Pass

PIPELINE = "name: test\npasses:\n  - gather_all\n  - look_around\n"
CAPTURED = ["00-capture.ir", "pipeline.yaml"]
WRITTEN = [
    "01-gather_all.diff",
    "01-gather_all.dot",
    "01-gather_all.ir",
    "report.html",
    "report.json",
]
REMEDY = "name a folder that can be written in options={'dump': DIR} or ZC_DUMP, or leave both out"


@pytest.fixture(autouse=True)
def _no_graphviz(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dump.shutil, "which", lambda _: None)


def run(instrument: DumpInstrument, name: str = "train.py:12 step") -> None:
    program = chain_step(name=name)
    passes: tuple[Pass, ...] = (GatherAll(), LookAround())
    instrument.before_passes(program, passes)
    for index, applied in enumerate(passes, 1):
        applied.run(program)
        instrument.after_pass(index, applied, program, 0.001 * index)
    instrument.after_passes(program)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_of_one_program(tmp_path: Path):
    run(DumpInstrument(tmp_path / "new" / "dumps", PIPELINE))
    folder = tmp_path / "new" / "dumps" / "train.py-12-step"
    assert names(folder) == sorted([*CAPTURED, *WRITTEN])
    assert (folder / "pipeline.yaml").read_text() == PIPELINE
    assert "zc.param" in (folder / "00-capture.ir").read_text()
    assert "zc.param" not in (folder / "01-gather_all.ir").read_text()
    diff = (folder / "01-gather_all.diff").read_text()
    assert diff.startswith("--- 00-capture.ir\n+++ 01-gather_all.ir\n@@ ")
    report = json.loads((folder / "report.json").read_text())
    assert problems(report) == []
    assert [(p["name"], p["changed"]) for p in report["passes"]] == [
        ("capture", True), ("gather_all", True), ("look_around", False),
    ]  # fmt: skip
    assert [p["milliseconds"] for p in report["passes"]] == [0.0, 1.0, 2.0]
    notes = [[], [], ["look_around: left alone: a < b"]]
    assert [p["notes"] for p in report["passes"]] == notes
    assert "look_around: left alone: a &lt; b" in (folder / "report.html").read_text()


def test_programs_share_a_folder_and_an_index(tmp_path: Path):
    instrument = DumpInstrument(tmp_path, PIPELINE)
    run(instrument)
    run(instrument)
    run(DumpInstrument(tmp_path, PIPELINE), name="eval<x>.py:3 score")
    folders = ["eval-x-.py-3-score", "train.py-12-step", "train.py-12-step-2"]
    assert names(tmp_path) == sorted([*folders, "index.html"])
    index = (tmp_path / "index.html").read_text()
    assert re.findall(r'href="([^"]*)"', index) == [f"{f}/report.html" for f in folders]


def test_two_dumps_are_the_same(tmp_path: Path):
    run(DumpInstrument(tmp_path / "a", PIPELINE))
    run(DumpInstrument(tmp_path / "b", PIPELINE))
    for name in names(tmp_path / "a" / "train.py-12-step"):
        first, second = (tmp_path / d / "train.py-12-step" / name for d in "ab")
        assert first.read_bytes() == second.read_bytes(), name


def test_an_earlier_dump_is_replaced_and_other_files_stay(tmp_path: Path):
    folder = tmp_path / "train.py-12-step"
    folder.mkdir()
    for name in ("07-old_pass.ir", "report.json", "notes.txt"):
        (folder / name).write_text("old")
    run(DumpInstrument(tmp_path, PIPELINE))
    assert names(folder) == sorted([*CAPTURED, *WRITTEN, "notes.txt"])


def test_a_foreign_report_is_left_out_of_the_index(tmp_path: Path):
    for name, text in {"a": "{}", "b": "not json", "c": "[]"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(text)
    run(DumpInstrument(tmp_path, PIPELINE))
    assert (tmp_path / "index.html").read_text().count("report.html") == 1


def test_only_rank_0_writes(tmp_path: Path):
    run(DumpInstrument(tmp_path / "dumps", PIPELINE, rank=1))
    assert names(tmp_path) == []


def test_every_rank_writes_when_asked(tmp_path: Path):
    for rank in (0, 1):
        run(DumpInstrument(tmp_path, PIPELINE, rank=rank, every_rank=True))
    assert names(tmp_path) == ["index.html", "train.py-12-step-rank0", "train.py-12-step-rank1"]


def test_a_failing_pass_leaves_what_came_before(tmp_path: Path):
    instrument = DumpInstrument(tmp_path, PIPELINE)
    instrument.before_passes(chain_step(), (GatherAll(),))
    assert names(tmp_path / "train.py-12-step") == CAPTURED


def test_no_partial_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full_disk)
    with pytest.raises(ZcError) as caught:
        write_text(tmp_path / "a.ir", "x")
    assert str(caught.value) == (
        f"cannot write the dump '{tmp_path}/a.ir': No space left on device; {REMEDY}"
    )
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_refused_at_once(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ZcError) as caught:
        DumpInstrument(tmp_path / "file" / "dumps", PIPELINE)
    assert str(caught.value) == (
        f"cannot write the dump '{tmp_path}/file/dumps': Not a directory; {REMEDY}"
    )


def test_a_file_in_place_of_a_programs_folder_is_refused(tmp_path: Path):
    (tmp_path / "step").write_text("")
    with pytest.raises(ZcError) as caught:
        program_folder(tmp_path, "step")
    assert str(caught.value) == f"cannot write the dump '{tmp_path}/step': File exists; {REMEDY}"


@pytest.mark.parametrize(
    ("script", "svg"),
    [("echo '<svg></svg>'", "<svg></svg>\n"), ("exit 1", None), ("exec sleep 20", None)],
)
def test_graphviz_draws_or_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, svg: str | None
):
    fake = tmp_path / "dot"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(stat.S_IRWXU)
    monkeypatch.setattr(dump.shutil, "which", lambda _: str(fake))
    monkeypatch.setattr(dump, "DOT_SECONDS", 0.5)
    assert draw_svg("digraph {}") == svg


def test_a_drawing_is_written_beside_its_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dump, "draw_svg", lambda _: "<svg></svg>")
    run(DumpInstrument(tmp_path, PIPELINE))
    folder = tmp_path / "train.py-12-step"
    assert names(folder) == sorted([*CAPTURED, *WRITTEN, "01-gather_all.svg"])
    assert "<svg></svg>" in (folder / "report.html").read_text()
