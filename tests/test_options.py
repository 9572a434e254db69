"""``options`` of ``torch.compile``: what is read, what overrides what, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from zc.errors import PipelineError
from zc.options import Settings, read_options
from zc.pipelines.pipeline import PassPipeline

ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "misspelt": ({"pases": "zero3"}, "options: no option named 'pases'; did you mean 'passes'?"),
    "unknown": (
        {"world": 4},
        "options: no option named 'world'; options are passes, executor, cuda_graph, dump, verify",
    ),
    "executor": (
        {"executor": "eager"},
        "options: executor must be 'inductor' or 'interpret', not 'eager'",
    ),
    "cuda_graph": (
        {"cuda_graph": "yes"},
        "options: cuda_graph must be True or False, not 'yes'",
    ),
    "verify": ({"verify": 1}, "options: verify must be True or False, not 1"),
    "pass pipeline": (
        {"passes": "zero9"},
        "no built-in pass pipeline named 'zero9'; there are zero0, zero1, zero2, zero3; the name "
        "of a file ends in .yaml or .yml",
    ),
    "pass": (
        {"passes": ["shard_parms"]},
        "passes[0]: no pass named 'shard_parms'; did you mean 'shard_params'?",
    ),
    "file": (
        {"passes": "nowhere.yaml"},
        "nowhere.yaml: no such file; the built-in pass pipelines are zero0, zero1, zero2, zero3",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str):
    options, message = ERRORS[name]
    with pytest.raises(PipelineError) as error:
        read_options(options)
    assert str(error.value) == message


def test_nothing_given(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("ZC_DUMP", raising=False)
    assert read_options(None) == read_options({}) == Settings(None, None, None, True)


@pytest.mark.parametrize(("sharded", "name"), [(True, "zero3"), (False, "zero0")])
def test_the_program_chooses_its_passes(sharded: bool, name: str):
    assert read_options({}).pipeline_for(sharded) == PassPipeline.builtin(name)


def test_an_executor_overrides_the_pass_pipeline():
    settings = read_options({"passes": "zero2", "executor": "interpret"})
    pipeline = settings.pipeline_for(sharded=True)
    assert (pipeline.name, pipeline.executor) == ("zero2", "interpret")
    assert PassPipeline.builtin("zero2").executor == "inductor"


def test_a_folder_for_dumps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("ZC_DUMP", "from_environment")
    assert read_options({}).dump == "from_environment"
    assert read_options({"dump": tmp_path}).dump == str(tmp_path)


def test_options_are_left_alone():
    options = {"executor": "interpret"}
    read_options(options)
    assert options == {"executor": "interpret"}


@pytest.mark.parametrize(("option", "expected"), [(None, True), (False, False), (True, True)])
def test_a_cuda_graph_is_an_option_and_a_setting(option: bool | None, expected: bool):
    passes = {"passes": ["shard_params"], "cuda_graph": True}
    settings = read_options({"passes": passes, "cuda_graph": option})
    assert settings.pipeline_for(sharded=True).cuda_graph is expected
