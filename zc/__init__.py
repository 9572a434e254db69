"""zc: ZeRO as compiler passes. ``torch.compile(model_or_step, backend="zero")``."""

from zc.errors import (
    CaptureError,
    CommunicationError,
    ExecutionError,
    MicrobatchError,
    PipelineError,
    PlanError,
    ShardError,
    VerifyError,
    ZcError,
)
from zc.inspection import capture
from zc.optimizer_step import compile_step
from zc.state.checkpoint import full_state_dict, load_full_state_dict
from zc.state.materialize import materialize
from zc.state.microbatches import microbatches
from zc.state.no_sync import no_sync
from zc.state.reading import full
from zc.state.scaling import scale
from zc.state.shard import shard
from zc.state.step import step, unscale_
from zc.torch_private import without_memory

__version__ = "0.1.0"

__all__ = [
    "CaptureError", "CommunicationError", "ExecutionError", "MicrobatchError", "PipelineError",
    "PlanError", "ShardError", "VerifyError", "ZcError", "__version__", "capture", "compile_step",
    "full", "full_state_dict", "load_full_state_dict", "materialize", "microbatches", "no_sync",
    "scale", "shard", "step", "unscale_", "without_memory",
]  # fmt: skip
