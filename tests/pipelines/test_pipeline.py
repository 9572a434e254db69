"""Pass pipelines that are right: from files, lists and Python, and back to text."""

import dataclasses
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zc.pipelines.discovery import pass_class
from zc.pipelines.pipeline import PassPipeline
from zc.pipelines.yaml_file import scalar_text, scalar_value
from zc.program.units import Bytes, Duration

pytestmark = pytest.mark.usefixtures("toy_passes")

CANONICAL = """\
name: zero3_kernels
executor: interpret
cuda_graph: true
memory_cap: 1.5GiB
passes:
  - shard_params: {persist_below: 100KB, zero_stage: 3}
  - prefetch_gathers: {memory: null, lead_time: 10ms, overlap: 0.5}
  - clean_graph
  - lower_kernels: {path: "/my disk", target: triton, checked: true}
  - clean_graph
"""


def write(folder: Path, text: str, name: str = "zero3.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def shard_params(**options: Any) -> Any:
    return pass_class("shard_params")(**options)


def test_a_canonical_file_prints_as_it_was_read(tmp_path: Path):
    assert PassPipeline.load(write(tmp_path, CANONICAL)).to_yaml() == CANONICAL


def test_a_file_becomes_passes_with_typed_options(tmp_path: Path):
    pipeline = PassPipeline.load(write(tmp_path, CANONICAL))
    assert (pipeline.name, pipeline.executor) == ("zero3_kernels", "interpret")
    assert (pipeline.cuda_graph, pipeline.memory_cap) == (True, Bytes("1.5GiB"))
    assert pipeline.passes == (
        pass_class("shard_params")(zero_stage=3, persist_below=Bytes("100KB")),
        pass_class("prefetch_gathers")(lead_time=Duration(0.01), overlap=0.5),
        pass_class("clean_graph")(),
        pass_class("lower_kernels")(path="/my disk", target="triton", checked=True),
        pass_class("clean_graph")(),
    )


def test_block_style_and_comments_are_read_and_printed_canonically(tmp_path: Path):
    text = "# sharded\npasses:\n- shard_params:\n    zero_stage: 2   # too\n- 'clean_graph'\n"
    assert PassPipeline.load(write(tmp_path, text, "mine.yml")).to_yaml() == (
        "name: mine\nexecutor: inductor\npasses:\n"
        "  - shard_params: {zero_stage: 2}\n  - clean_graph\n"
    )


def test_a_list_may_hold_names_options_and_passes():
    pipeline = PassPipeline.from_list(
        [{"shard_params": {"persist_below": "100KB"}}, "clean_graph", pass_class("clean_graph")()]
    )
    assert pipeline.to_yaml() == (
        "name: custom\nexecutor: inductor\npasses:\n"
        "  - shard_params: {persist_below: 100KB}\n  - clean_graph\n  - clean_graph\n"
    )


def test_every_way_to_name_the_same_pass_pipeline(tmp_path: Path):
    path = write(tmp_path, "passes: [{shard_params: {zero_stage: 1}}]", "custom.yaml")
    items = [{"shard_params": {"zero_stage": 1}}]
    made = PassPipeline("custom", "inductor", (shard_params(zero_stage=1),))
    for spec in (path, str(path), items, tuple(items), {"passes": items}, made):
        assert PassPipeline.resolve(spec) == made


def test_passes_can_be_replaced_in_a_loaded_pass_pipeline():
    pipeline = dataclasses.replace(
        PassPipeline.resolve(["shard_params"]),
        passes=(pass_class("clean_graph")(), shard_params()),
    )
    assert pipeline.to_yaml().endswith("passes:\n  - clean_graph\n  - shard_params\n")


TEXTS = st.one_of(
    st.text(),
    st.text(string.ascii_lowercase + "0123456789.:#-{}[]&*!|>'\"%@` \n", max_size=8),
    st.sampled_from(["true", "yes", "null", "~", "1", "1e3", "0x10", "1:30", "2024-01-01", "---"]),
)
SIZES = st.one_of(
    st.integers(0, 2**50).map(Bytes), st.sampled_from(["0", "1.5GiB", "100KB"]).map(Bytes)
)
DURATIONS = st.one_of(st.floats(0, 1e6).map(Duration), st.just(Duration("10ms")))


@st.composite
def pipelines(draw: st.DrawFn) -> PassPipeline:
    sharding = shard_params(zero_stage=draw(st.integers(0, 3)), persist_below=draw(SIZES))
    prefetching = pass_class("prefetch_gathers")(
        memory=draw(st.none() | SIZES),
        lead_time=draw(DURATIONS),
        overlap=draw(st.floats(allow_nan=False, allow_infinity=False)),
    )
    lowering = pass_class("lower_kernels")(
        path=draw(TEXTS), target=draw(st.sampled_from(["auto", "cpp"])), checked=draw(st.booleans())
    )
    more = draw(st.lists(st.sampled_from([prefetching, lowering, pass_class("clean_graph")()])))
    executor = draw(st.sampled_from(["inductor", "interpret"]))
    cap = draw(st.none() | SIZES)
    return PassPipeline(draw(TEXTS), executor, (sharding, prefetching, *more), cap)


@given(pipelines())
def test_printing_and_loading_is_the_identity(tmp_path_factory, pipeline: PassPipeline):
    path = write(tmp_path_factory.mktemp("pipeline"), pipeline.to_yaml())
    again = PassPipeline.load(path)
    assert again == pipeline
    assert again.to_yaml() == pipeline.to_yaml()


@given(st.one_of(TEXTS, st.integers(), st.booleans(), st.none()))
def test_a_plain_scalar_reads_back(value: Any):
    text = scalar_text(value)
    assert text.startswith('"') or scalar_value(text) == value
