"""From a captured program to one that can run: passes, and all ranks agreeing on the outcome."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from zc import agreed, plan
from zc.capture.session import current_session
from zc.clock import spending
from zc.comm.choice import use_measured
from zc.debug.attach import dump_instruments
from zc.devices.ways import table_of
from zc.options import Settings
from zc.pipelines.instrument import Instrument
from zc.pipelines.manager import run_passes
from zc.program.pass_base import Pass
from zc.program.program import Program
from zc.program.tables import Output
from zc.run.cuda_graph import note_of, recorder_for, refuse_unrecordable, say_if_symbolic
from zc.run.executor import Loop, build_loop
from zc.run.recorded_loop import RecordedLoop


@dataclass(frozen=True)
class Ready:
    """How a transformed program runs, and who wants to know when it can."""

    executor: str
    instruments: Sequence[Instrument] = ()
    records: bool = False  # whether a CUDA graph is asked for, which holds the whole program

    def loop(self, program: Program, graph: fx.Graph, outputs: list[Output], **how: Any) -> Loop:
        """The loop of ``graph``, ``build_loop`` with the executor that was asked for."""
        recorder = recorder_for(program) if self.records else None
        if recorder is not None:
            recorded = RecordedLoop(program, recorder)
            program, graph = recorded.program, recorded.program.graph
            how = {k: v for k, v in how.items() if k != "deferred"} | {"recorded": recorded}
        loop = build_loop(program, graph, outputs, self.executor, **how)
        for instrument in self.instruments:
            instrument.after_loop()
        return loop


class _NoteRecording(Instrument):
    """Notes behind the last pass how much of a program a CUDA graph holds."""

    def before_passes(self, program: Program, passes: tuple[Pass, ...]) -> None:
        """See ``Instrument``."""
        self._last = len(passes)

    def after_pass(self, index: int, applied: Pass, program: Program, seconds: float) -> None:
        """See ``Instrument``."""
        if index == self._last:
            program.notes.append(note_of(program))


def transform(
    program: Program, settings: Settings, tokens: Sequence[object], *, sharded: bool
) -> Ready:
    """Run the passes that ``settings`` ask for on ``program``, in place.

    Args:
        program: as captured.
        settings: of the compiled function.
        tokens: those of the parameters, see ``zc.plan``.
        sharded: whether some parameter is.

    Returns:
        What makes its loops.

    Raises:
        ExecutionError: for a program that cannot be recorded where that is asked for.
    """
    pipeline = settings.pipeline_for(sharded)
    instruments = dump_instruments(settings.dump, pipeline)
    if pipeline.cuda_graph:
        instruments = (_NoteRecording(), *instruments)
    runs = current_session().runs
    if runs:
        with spending("agreement of ranks"):
            agreed.adopt(program, tokens, own_device=pipeline.device is None)
    run_passes(program, pipeline, instruments, verify=settings.verify)
    if runs:
        if pipeline.cuda_graph:
            refuse_unrecordable(program)
            say_if_symbolic(program)
        with spending("agreement of ranks"):
            agreed.publish(program, tokens)
            plan.agree(program, tokens)
        if program.device is not None and program.device.ways:
            use_measured(table_of(program.device))  # the same on all ranks, which have agreed
    return Ready(pipeline.executor, instruments, records=bool(pipeline.cuda_graph))
