"""The instrument that writes down what every pass did.

DIR/index.html                    all programs
DIR/train.py-12-step/             one program; a recompile gets train.py-12-step-2
    pipeline.yaml                 the resolved pass pipeline
    00-capture.ir
    01-shard_params.ir .diff .dot .svg      of each pass that changed the printed program
    report.json  report.html
    seconds.txt                   where the time of compiling went, once the program can run
"""

import json
import shutil
import subprocess
from functools import partial
from pathlib import Path

from zc import clock
from zc.debug.dot import draw
from zc.debug.files import check_writable, program_folder, write_text
from zc.debug.fold import outline
from zc.debug.html import Change, render
from zc.debug.index import write_index
from zc.debug.report import build_report, describe
from zc.debug.schema import PassReport
from zc.debug.textdiff import diff_texts
from zc.pipelines.instrument import Instrument
from zc.program.pass_base import Pass
from zc.program.printer import print_program
from zc.program.program import Program

DOT_SECONDS = 30  # a drawing that graphviz needs longer for is left out


class DumpInstrument(Instrument):
    """Writes a dump of each program that the manager runs passes on.

    Args:
        directory: shared by all programs; made when it is missing.
        pipeline: the resolved pass pipeline as YAML text.
        rank: of this process; ranks other than 0 write nothing.
        every_rank: write on all ranks, each program's folder ending in ``-rank3``.
        fused: whether regions are compiled, which predicted times reckon with.

    Raises:
        ZcError: when nothing can be written there.
    """

    def __init__(
        self,
        directory: str | Path,
        pipeline: str,
        *,
        rank: int = 0,
        every_rank: bool = False,
        fused: bool = True,
    ) -> None:
        self.directory = Path(directory)
        self.pipeline = pipeline
        self.fused = fused
        self.enabled = rank == 0 or every_rank
        self.folder: Path | None = None
        self._suffix = f"-rank{rank}" if every_rank else ""
        self._stages: list[PassReport] = []
        self._changes: dict[int, Change] = {}
        self._noted = 0  # notes of the program that stand in the report already
        self._last = ("", "")  # file name and text of the program's latest form
        self._describe = partial(describe, fused=fused)
        if self.enabled:
            check_writable(self.directory)

    def before_passes(self, program: Program, passes: tuple[Pass, ...]) -> None:
        """Write the pipeline and the program as captured, into a folder of its own."""
        if not self.enabled:
            return
        self.folder = program_folder(self.directory, program.name + self._suffix)
        self._stages = [self._describe(program, 0, None, changed=True, seconds=0.0)]
        self._changes, self._noted = {}, len(program.notes)
        self._last = ("00-capture.ir", print_program(program))
        write_text(self.folder / "pipeline.yaml", self.pipeline)
        write_text(self.folder / self._last[0], self._last[1])

    def after_pass(self, index: int, applied: Pass, program: Program, seconds: float) -> None:
        """Write the program, the difference and a drawing if the pass changed anything."""
        if self.folder is None:
            return
        text = print_program(program)
        changed = text != self._last[1]
        notes, self._noted = program.notes[self._noted :], len(program.notes)
        stage = self._describe(
            program, index, applied, changed=changed, seconds=seconds, notes=notes
        )
        self._stages.append(stage)
        if changed:
            self._write_change(self.folder, index, f"{index:02d}-{applied.name}", program, text)

    def after_passes(self, program: Program) -> None:
        """Write the report, the page and the index of all programs."""
        if self.folder is None:
            return
        report = build_report(program, self._stages, self.pipeline, fused=self.fused)
        write_text(self.folder / "report.json", json.dumps(report, indent=1) + "\n")
        write_text(self.folder / "report.html", render(report, self._changes, outline(program)))
        write_index(self.directory)

    def after_loop(self) -> None:
        """Write where the seconds of compiling went, so far: a half may still have to come."""
        if self.folder is not None:
            write_text(self.folder / "seconds.txt", clock.table(clock.since_mark()))

    def _write_change(
        self, folder: Path, index: int, stem: str, program: Program, text: str
    ) -> None:
        old_name, old_text = self._last
        self._last = (f"{stem}.ir", text)
        diff = diff_texts(old_text, text, old_name, self._last[0])
        drawing = draw(program)
        svg = draw_svg(drawing)
        write_text(folder / f"{stem}.ir", text)
        write_text(folder / f"{stem}.diff", diff)
        write_text(folder / f"{stem}.dot", drawing)
        if svg is not None:
            write_text(folder / f"{stem}.svg", svg)
        self._changes[index] = Change(stem, diff, svg)


def draw_svg(drawing: str) -> str | None:
    """``drawing`` as SVG; ``None`` when graphviz is missing, fails or takes too long."""
    command = shutil.which("dot")
    if command is None:
        return None
    try:
        done = subprocess.run(
            [command, "-Tsvg"],
            input=drawing,
            capture_output=True,
            text=True,
            timeout=DOT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
