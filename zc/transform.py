"""From a captured program to one that can run: passes, and all ranks agreeing on the outcome."""

from collections.abc import Sequence

from zc import plan
from zc.capture.session import current_session
from zc.debug.attach import dump_instruments
from zc.options import Settings
from zc.pipelines.manager import run_passes
from zc.program.program import Program


def transform(
    program: Program, settings: Settings, tokens: Sequence[object], *, sharded: bool
) -> str:
    """Run the passes that ``settings`` ask for on ``program``, in place.

    Args:
        program: as captured.
        settings: of the compiled function.
        tokens: those of the parameters, see ``zc.plan``.
        sharded: whether some parameter is.

    Returns:
        The executor to run it with.
    """
    pipeline = settings.pipeline_for(sharded)
    instruments = dump_instruments(settings.dump, pipeline)
    run_passes(program, pipeline, instruments, verify=settings.verify)
    if current_session().runs:
        plan.agree(program, tokens)
    return pipeline.executor
