"""The pass pipelines that ship with zc: which passes are in them, in which order."""

from pathlib import Path

import pytest

import zc
from zc.pipelines.pipeline import PassPipeline

FOLDER = Path(zc.__file__).parent / "pipelines" / "builtin"
CLEANED = ("shard_params", "shard_update", "clean_graph", "merge_common", "recompute_pointwise",
           "bucket_collectives")  # fmt: skip
LATE = (*CLEANED, "lower_update", "delay_reductions")
EARLY = (*LATE[:-1], "prefetch_gathers", LATE[-1])
PASSES = {
    "zero0": LATE,
    "zero1": EARLY,
    "zero2": EARLY,
    "zero3": (*CLEANED, "fuse_update", "lower_update", "keep_gathered", "prefetch_gathers",
              "delay_reductions"),
}  # fmt: skip


@pytest.mark.parametrize("name", PASSES)
def test_passes_of(name: str):
    pipeline = PassPipeline.resolve(name)
    assert tuple(p.name for p in pipeline.passes) == PASSES[name]
    assert vars(pipeline.passes[0])["zero_stage"] == int(name[-1])
    written = (FOLDER / f"{name}.yaml").read_text().splitlines(keepends=True)
    assert pipeline.to_yaml() == "".join(line for line in written if not line.startswith("#"))
