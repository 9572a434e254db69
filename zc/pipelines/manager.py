"""The pass manager: runs the passes of a pass pipeline in order, times and verifies each.

run_passes(program, PassPipeline.builtin("zero3"), instruments=[Dump(folder)])
"""

import time
from collections.abc import Callable, Sequence

from zc import collection
from zc.clock import spending
from zc.cost.advice import Way, advise
from zc.devices.default import default_device
from zc.devices.reader import load_device
from zc.errors import CapError, PipelineError, VerifyError
from zc.pipelines.alternatives import alternatives
from zc.pipelines.contract import check_order
from zc.pipelines.instrument import Instrument
from zc.pipelines.located import nearest
from zc.pipelines.pipeline import PassPipeline
from zc.program.copying import copy_program
from zc.program.lines import Reading
from zc.program.pass_base import Pass
from zc.program.program import Program
from zc.program.standing import Standing
from zc.verify import verify as verify_program


@collection.put_off()
def run_passes(
    program: Program,
    pipeline: PassPipeline,
    instruments: Sequence[Instrument] = (),
    *,
    verify: bool = True,
    skip: frozenset[str] = frozenset(),
) -> None:
    """Rewrite ``program`` in place with the passes of ``pipeline``.

    The program is verified as it comes, after every pass that changed it, and at the end; the types
    of all nodes are derived anew at the beginning and at the end, in between only where something
    changed. Instruments are called before the verifier, so that a dump shows the program that it
    refuses.

    Args:
        program: as captured.
        pipeline: what to run; passes see its ``device`` and ``memory_cap`` in the program, which
            must be within the cap when all of them have run.
        instruments: called around every pass.
        verify: whether to verify.
        skip: names of optional and numeric passes to leave out, for bisection.

    Raises:
        PipelineError: when a pass fails (its error is the cause), or on a wrong ``skip``.
        VerifyError: when the program as captured, or what a pass leaves, breaks a rule; a
            ``CapError`` where it is above the memory cap, with what would bring it under.
    """
    passes = select_passes(pipeline, skip)
    program.device = load_device(pipeline.device) if pipeline.device else default_device(program)
    program.fused = pipeline.executor == "inductor"
    if pipeline.memory_cap is not None:
        program.cap_bytes = int(pipeline.memory_cap)
    logical = None if program.cap_bytes is None else copy_program(program)
    with spending("instruments"):
        for instrument in instruments:
            instrument.before_passes(program, passes)
    if verify:
        _verify(program, "before the first pass", full=True, capped=False)
    standing = Standing(program) if verify else None
    for index, item in enumerate(passes, start=1):
        seconds = _run_one(item, index, program)
        with spending("instruments"):
            for instrument in instruments:
                instrument.after_pass(index, item, program, seconds)
        if not verify:
            continue
        last = index == len(passes)
        before, standing = standing, Standing(program)
        if last or standing != before:
            when, reading = f"after pass {index}, '{item.name}'", standing.reading
            try:
                _verify(program, when, full=last, capped=last, reading=reading)
            except CapError as error:
                raise CapError(f"{error}\n{_advice(logical, program, pipeline)}") from error
    with spending("instruments"):
        for instrument in instruments:
            instrument.after_passes(program)


def select_passes(pipeline: PassPipeline, skip: frozenset[str] = frozenset()) -> tuple[Pass, ...]:
    """The passes of ``pipeline`` without those named in ``skip``.

    Raises:
        PipelineError: for an unknown name, a required pass, and a pass that later ones need.
    """
    kinds = {item.name: item.kind for item in pipeline.passes}
    for name in sorted(skip):
        if name not in kinds:
            raise PipelineError(
                f"cannot skip '{name}': pass pipeline '{pipeline.name}' has no such pass"
                f"{nearest(name, kinds)}"
            )
        if kinds[name] == "required":
            raise PipelineError(f"cannot skip '{name}': it is a required pass")
    kept = [(i, item) for i, item in enumerate(pipeline.passes) if item.name not in skip]
    passes = tuple(item for _, item in kept)
    try:
        check_order(passes, tuple(f"passes[{i}]" for i, _ in kept))
    except PipelineError as error:
        skipped = ", ".join(f"'{name}'" for name in sorted(skip))
        raise PipelineError(f"cannot skip {skipped}: {error}") from error
    return passes


def _run_one(item: Pass, index: int, program: Program) -> float:
    """Run one pass; the seconds it took."""
    start = time.perf_counter()
    try:
        with spending(f"pass {item.name}"):
            item.run(program)
    except Exception as error:
        kind = "" if isinstance(error, PipelineError) else f"{type(error).__name__}: "
        raise PipelineError(f"pass {index}, '{item.name}', failed: {kind}{error}") from error
    return time.perf_counter() - start


def _verify(program: Program, when: str, *, reading: Reading | None = None, **how: bool) -> None:
    try:
        with spending("verification"):
            verify_program(program, reading=reading, **how)
    except VerifyError as error:
        raise type(error)(f"{when}: {error}") from error


def _advice(logical: Program | None, program: Program, pipeline: PassPipeline) -> str:
    """What the peak of ``program`` consists of, and which other passes would lower it."""
    assert logical is not None
    assert program.cap_bytes is not None
    ways = [Way(text, _running(passes)) for text, passes in alternatives(pipeline.passes)]
    fused = pipeline.executor == "inductor"
    return advise(logical, program, ways, cap=program.cap_bytes, fused=fused)


def _running(passes: Sequence[Pass]) -> Callable[[Program], None]:
    def run(program: Program) -> None:
        for index, item in enumerate(passes, start=1):
            _run_one(item, index, program)

    return run
