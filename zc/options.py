"""What ``torch.compile(..., backend="zero", options={...})`` takes."""

import os
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from zc.errors import PipelineError
from zc.pipelines.pipeline import PassPipeline

KEYS = ("passes", "executor", "cuda_graph", "dump", "verify")
EXECUTORS = ("inductor", "interpret")


@dataclass(frozen=True)
class Settings:
    """Resolved options of one compiled function.

    ``pipeline`` is ``None`` when the program decides: ``zero3`` with sharded parameters, else
    ``zero0``.
    """

    pipeline: PassPipeline | None
    executor: str | None
    dump: str | None
    verify: bool = True
    cuda_graph: bool | None = None

    def pipeline_for(self, sharded: bool) -> PassPipeline:
        """The pipeline to run, with the executor and CUDA graph that the options ask for."""
        pipeline = self.pipeline or PassPipeline.builtin("zero3" if sharded else "zero0")
        asked = {"executor": self.executor, "cuda_graph": self.cuda_graph}
        return replace(pipeline, **{k: value for k, value in asked.items() if value is not None})


def read_options(options: dict[str, Any] | None) -> Settings:
    """Check ``options`` and resolve the pipeline that they name.

    Raises:
        PipelineError: for an unknown key, executor or pass pipeline.
    """
    options = dict(options or {})
    for key in options:
        if key not in KEYS:
            close = get_close_matches(key, KEYS, 1)
            hint = f"did you mean '{close[0]}'?" if close else f"options are {', '.join(KEYS)}"
            raise PipelineError(f"options: no option named '{key}'; {hint}")
    executor = options.get("executor")
    if executor is not None and executor not in EXECUTORS:
        raise PipelineError(
            f"options: executor must be 'inductor' or 'interpret', not {executor!r}"
        )
    verify = options.get("verify", True)
    if not isinstance(verify, bool):
        raise PipelineError(f"options: verify must be True or False, not {verify!r}")
    cuda_graph = options.get("cuda_graph")
    if not isinstance(cuda_graph, bool | None):
        raise PipelineError(f"options: cuda_graph must be True or False, not {cuda_graph!r}")
    passes = options.get("passes")
    dump = options.get("dump") or os.environ.get("ZC_DUMP") or None
    pipeline = None if passes is None else PassPipeline.resolve(passes)
    return Settings(pipeline, executor, None if dump is None else str(dump), verify, cuda_graph)
