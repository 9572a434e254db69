"""zc: ZeRO as compiler passes. ``torch.compile(model_or_step, backend="zero")``."""

from zc.errors import (
    CaptureError,
    CommunicationError,
    ExecutionError,
    PipelineError,
    PlanError,
    ShardError,
    VerifyError,
    ZcError,
)
from zc.inspection import capture
from zc.state.checkpoint import full_state_dict, load_full_state_dict
from zc.state.materialize import materialize
from zc.state.reading import full
from zc.state.shard import shard
from zc.state.step import step

__version__ = "0.1.0"

__all__ = [
    "CaptureError", "CommunicationError", "ExecutionError", "PipelineError", "PlanError",
    "ShardError", "VerifyError", "ZcError", "__version__", "capture", "full", "full_state_dict",
    "load_full_state_dict", "materialize", "shard", "step",
]  # fmt: skip
