"""What ``prefetch_gathers``, ``delay_reductions`` and ``keep_gathered`` refuse alike."""

import pytest
from overlap import DEVICE, program_on
from zc.passes.delay_reductions import DelayReductions
from zc.passes.keep_gathered import KeepGathered
from zc.passes.prefetch_gathers import PrefetchGathers

from zc.errors import PipelineError
from zc.program.pass_base import Pass


@pytest.mark.parametrize("weighing", [PrefetchGathers(), DelayReductions(), KeepGathered()])
def test_a_program_without_a_device(weighing: Pass):
    program = program_on(DEVICE, [8, 8], 3)
    program.device = None
    with pytest.raises(PipelineError) as caught:
        weighing.run(program)
    assert str(caught.value) == (
        f"'{weighing.name}' weighs costs, and the program has no device; run it in a pass "
        "pipeline, or set program.device to one of zc.devices.reader.load_device"
    )
