"""From a captured program to one that can run: passes, and all ranks agreeing on the outcome."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from zc import plan
from zc.capture.session import current_session
from zc.clock import spending
from zc.debug.attach import dump_instruments
from zc.options import Settings
from zc.pipelines.instrument import Instrument
from zc.pipelines.manager import run_passes
from zc.program.program import Program
from zc.program.tables import Output
from zc.run.executor import Loop, build_loop


@dataclass(frozen=True)
class Ready:
    """How a transformed program runs, and who wants to know when it can."""

    executor: str
    instruments: Sequence[Instrument] = ()

    def loop(self, program: Program, graph: fx.Graph, outputs: list[Output], **how: Any) -> Loop:
        """The loop of ``graph``, ``build_loop`` with the executor that was asked for."""
        loop = build_loop(program, graph, outputs, self.executor, **how)
        for instrument in self.instruments:
            instrument.after_loop()
        return loop


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
    """
    pipeline = settings.pipeline_for(sharded)
    instruments = dump_instruments(settings.dump, pipeline)
    run_passes(program, pipeline, instruments, verify=settings.verify)
    if current_session().runs:
        with spending("agreement of ranks"):
            plan.agree(program, tokens)
    return Ready(pipeline.executor, instruments)
