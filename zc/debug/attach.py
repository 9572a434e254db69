"""Which instruments a compiled function's options ask for."""

import torch.distributed as dist

from zc.debug.dump import DumpInstrument
from zc.pipelines.instrument import Instrument
from zc.pipelines.pipeline import PassPipeline


def dump_instruments(folder: str | None, pipeline: PassPipeline) -> tuple[Instrument, ...]:
    """A dump into ``folder``, written by rank 0; nothing when no folder is given."""
    if folder is None:
        return ()
    rank = dist.get_rank() if dist.is_initialized() else 0
    fused = pipeline.executor == "inductor"
    return (DumpInstrument(folder, pipeline.to_yaml(), rank=rank, fused=fused),)
