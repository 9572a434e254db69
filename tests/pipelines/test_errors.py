"""Pass pipelines that are wrong: every message, in full."""

import os
from pathlib import Path
from typing import Any

import pytest

from zc.errors import PipelineError
from zc.pipelines.discovery import pass_class
from zc.pipelines.pipeline import PassPipeline

pytestmark = pytest.mark.usefixtures("toy_passes")

KEYS = "name, executor, cuda_graph, memory_cap, device, passes"
SHAPE = "an item of passes is a name or one 'name: {options}'"
UNITS = "B, KB, MB, GB, TB, KiB, MiB, GiB, TiB"

IN_FILES = {
    "unknown pass": (
        "passes:\n  - shard_parms\n",
        "2: no pass named 'shard_parms'; did you mean 'shard_params'?",
    ),
    "unknown pass, none near": (
        "passes:\n  - zzz: {a: 1}\n",
        "2: no pass named 'zzz'; 'zc passes' lists them",
    ),
    "unknown option": (
        "passes:\n  - shard_params:\n      zero_stage: 3\n      zero_stag: 3\n",
        "4: 'shard_params' has no option 'zero_stag'; did you mean 'zero_stage'?",
    ),
    "unknown option, none near": (
        "passes:\n  - shard_params: {x: 3}\n",
        "2: 'shard_params' has no option 'x'; its options are zero_stage, persist_below",
    ),
    "option of a pass that has none": (
        "passes:\n  - clean_graph: {x: 3}\n",
        "2: 'clean_graph' has no option 'x'; it takes no options",
    ),
    "text for a whole number": (
        "passes:\n  - shard_params: {zero_stage: three}\n",
        "2: option 'zero_stage' of 'shard_params' must be a whole number; got 'three'",
    ),
    "true for a whole number": (
        "passes: [{shard_params: {zero_stage: true}}]",
        "1: option 'zero_stage' of 'shard_params' must be a whole number; got true",
    ),
    "octal number": (
        "passes: [{shard_params: {zero_stage: 0o3}}]",
        "1: option 'zero_stage' of 'shard_params' must be a whole number; got '0o3'",
    ),
    "nothing for a whole number": (
        "passes: [{shard_params: {zero_stage: }}]",
        "1: option 'zero_stage' of 'shard_params' must be a whole number; got nothing",
    ),
    "value out of range": (
        "passes:\n  - shard_params: {zero_stage: 4}\n",
        "2: 'shard_params': zero_stage must be 0, 1, 2 or 3; got 4",
    ),
    "size without unit": (
        "passes:\n  - shard_params:\n      persist_below: 100\n",
        "3: option 'persist_below' of 'shard_params': 100 has no unit; "
        f"write '100B' or another of {UNITS}",
    ),
    "unknown unit": (
        "passes: [{shard_params: {persist_below: 100kb}}]",
        "1: option 'persist_below' of 'shard_params': '100kb' has an unknown unit 'kb'; "
        f"the units are {UNITS}",
    ),
    "list for a size": (
        "passes: [{shard_params: {persist_below: [1KB]}}]",
        "1: option 'persist_below' of 'shard_params' must be a size such as 100KB; got a list",
    ),
    "size or nothing": (
        "passes: [shard_params, {prefetch_gathers: {memory: {a: 1}}}]",
        "1: option 'memory' of 'prefetch_gathers' must be a size such as 100KB, or null; "
        "got a mapping",
    ),
    "size for a duration": (
        "passes: [shard_params, {prefetch_gathers: {lead_time: 10MB}}]",
        "1: option 'lead_time' of 'prefetch_gathers': '10MB' has an unknown unit 'MB'; "
        "the units are s, ms, us",
    ),
    "true for a duration": (
        "passes: [shard_params, {prefetch_gathers: {lead_time: true}}]",
        "1: option 'lead_time' of 'prefetch_gathers' must be a duration such as 10ms; got true",
    ),
    "endless number": (
        "passes: [shard_params, {prefetch_gathers: {overlap: 1e999}}]",
        "1: option 'overlap' of 'prefetch_gathers' must be a number; got inf",
    ),
    "yes for true": (
        "passes: [{lower_kernels: {path: p, checked: yes}}]",
        "1: option 'checked' of 'lower_kernels' must be true or false; got 'yes'",
    ),
    "number for text": (
        "passes: [{lower_kernels: {path: 3}}]",
        "1: option 'path' of 'lower_kernels' must be text; got 3",
    ),
    "not one of the choices": (
        "passes: [{lower_kernels: {path: p, target: tritn}}]",
        "1: option 'target' of 'lower_kernels' must be 'auto' or 'triton' or 'cpp'; got 'tritn'; "
        "did you mean 'triton'?",
    ),
    "missing option": (
        "passes:\n  - lower_kernels\n",
        "2: 'lower_kernels' needs its option 'path'",
    ),
    "requirement not provided": (
        "passes:\n  - prefetch_gathers\n  - shard_params\n",
        "2: 'prefetch_gathers' needs sharded_params, which no earlier pass provides",
    ),
    "required pass twice": (
        "passes:\n  - shard_params\n  - clean_graph\n  - shard_params: {zero_stage: 1}\n",
        "4: 'shard_params' is a required pass and stands only once; it is already at {file}:2",
    ),
    "empty list": (
        "name: a\npasses: []\n",
        "2: passes is empty; list at least one, 'zc passes' shows them",
    ),
    "no list": ("passes: shard_params", "1: passes must be a list; got 'shard_params'"),
    "no passes": (
        "name: a",
        "1: no passes; add a list under 'passes:', 'zc passes' shows them",
    ),
    "unknown key": (
        "pases: [shard_params]",
        "1: unknown key 'pases'; did you mean 'passes'?",
    ),
    "unknown key, none near": ("x: 1", f"1: unknown key 'x'; the keys are {KEYS}"),
    "executor": (
        "passes: [shard_params]\nexecutor: inductr",
        "2: executor must be 'inductor' or 'interpret'; got 'inductr'; did you mean 'inductor'?",
    ),
    "name": ("name: [a]\npasses: [shard_params]", "1: name must be text; got a list"),
    "memory cap": (
        "memory_cap: 16\npasses: [shard_params]",
        f"1: memory_cap: 16 has no unit; write '16B' or another of {UNITS}",
    ),
    "not a mapping": ("- shard_params", f"1: expected a mapping with {KEYS}; got a list"),
    "number as item": ("passes: [3]", f"1: {SHAPE}; got 3"),
    "two keys in an item": (
        "passes:\n  - shard_params:\n    zero_stage: 3\n",
        f"2: {SHAPE}; got 'shard_params' and 'zero_stage' (indent options deeper than the name)",
    ),
    "no key in an item": (
        "passes: [{}]",
        f"1: {SHAPE}; got no key (indent options deeper than the name)",
    ),
    "options are no mapping": (
        "passes:\n  - shard_params: 3\n",
        "2: options of 'shard_params' must be a mapping, {option: value}; got 3",
    ),
    "options are left out": (
        "passes:\n  - shard_params:\n",
        "2: options of 'shard_params' must be a mapping, {option: value}; got nothing",
    ),
    "empty file": ("# nothing\n", "1: empty file; write at least a list of passes"),
    "no YAML": (
        "passes:\n  - {shard_params: 3\n",
        "3: not valid YAML: expected ',' or '}', but got '<stream end>'",
    ),
    "tab": (
        "passes:\n\t- shard_params\n",
        "2: not valid YAML: found character '\\t' that cannot start any token",
    ),
    "control character": (
        "name: a\npasses: [\x01]\n",
        "2: not valid YAML: character '\\x01' is not allowed",
    ),
    "anchor": ("name: &a b\npasses: [c]", "1: anchor '&a'; anchors are not supported"),
    "alias": (
        "passes:\n  - *a\n",
        "2: alias '*a'; write the value out, aliases are not supported",
    ),
    "tag": (
        "passes:\n  - !!str clean_graph\n",
        "2: tag 'tag:yaml.org,2002:str'; tags are not supported",
    ),
    "merge key": (
        "passes:\n  - shard_params: {<<: {zero_stage: 3}}\n",
        "2: merge key '<<'; write the options out, merge keys are not supported",
    ),
    "duplicate key": (
        "name: a\npasses: [shard_params]\nname: b\n",
        "3: key 'name' appears twice; it is already at {file}:1",
    ),
    "key that is no text": ("3: a", "1: a key must be text; got 3"),
    "key that is a list": ("? [a]\n: b", "1: a key must be text; got a list"),
    "second document": (
        "passes: [shard_params]\n---\npasses: [clean_graph]\n",
        "2: a second document; another pass pipeline is another file",
    ),
    "deep nesting": ("passes:\n  " + "[" * 2000 + "]" * 2000, "2: nested more than 20 deep"),
}  # fmt: skip


@pytest.mark.parametrize("text, message", IN_FILES.values(), ids=IN_FILES.keys())  # noqa: PT006
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, message: str):
    path = tmp_path / "zero3.yaml"
    path.write_text(text)
    with pytest.raises(PipelineError) as caught:
        PassPipeline.load(path)
    assert str(caught.value) == f"{path}:{message.replace('{file}', str(path))}"


IN_PYTHON = {
    "unknown pass": (
        ["shard_params", "prefetch_gather"],
        "passes[1]: no pass named 'prefetch_gather'; did you mean 'prefetch_gathers'?",
    ),
    "unknown option": (
        [{"shard_params": {"stage": 3}}],
        "passes[0]: 'shard_params' has no option 'stage'; did you mean 'zero_stage'?",
    ),
    "wrong type": (
        ["clean_graph", {"shard_params": {"zero_stage": object()}}],
        "passes[1]: option 'zero_stage' of 'shard_params' must be a whole number; "
        "got an object of class object",
    ),
    "order": (
        ["prefetch_gathers"],
        "passes[0]: 'prefetch_gathers' needs sharded_params, which no earlier pass provides",
    ),
    "twice": (
        ["shard_params", "shard_params"],
        "passes[1]: 'shard_params' is a required pass and stands only once; "
        "it is already at passes[0]",
    ),
    "empty": ([], "pass pipeline: passes is empty; list at least one, 'zc passes' shows them"),
    "key": ([{3: {}}], "passes[0]: a key must be text; got 3"),
    "unknown setting": (
        {"passes": ["shard_params"], "executer": "interpret"},
        "pass pipeline: unknown key 'executer'; did you mean 'executor'?",
    ),
    "no spec": (
        3,
        "pass pipeline: got 3; give a built-in name (zero0, zero1, zero2, zero3), "
        "a path that ends in .yaml, or a list of passes",
    ),
    "no built-in": (
        "zero4",
        "no built-in pass pipeline named 'zero4'; there are zero0, zero1, zero2, zero3; "
        "the name of a file ends in .yaml or .yml",
    ),
    "missing file": (
        "nowhere/zero3.yaml",
        "nowhere/zero3.yaml: no such file; "
        "the built-in pass pipelines are zero0, zero1, zero2, zero3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("spec, message", IN_PYTHON.values(), ids=IN_PYTHON.keys())  # noqa: PT006
def test_a_wrong_spec_is_refused(spec: Any, message: str):
    with pytest.raises(PipelineError) as caught:
        PassPipeline.resolve(spec)
    assert str(caught.value) == message


def test_a_folder_cannot_be_read(tmp_path: Path):
    path = tmp_path / "folder.yaml"
    path.mkdir()
    with pytest.raises(PipelineError) as caught:
        PassPipeline.load(path)
    assert str(caught.value) == f"{path}: cannot be read: {os.strerror(21)}"


def test_a_file_must_be_utf8(tmp_path: Path):
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"name: caf\xe9")
    with pytest.raises(PipelineError) as caught:
        PassPipeline.load(path)
    assert str(caught.value) == f"{path}: not UTF-8 text at byte 9"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"executor": "eager"},
            "pass pipeline: executor must be 'inductor' or 'interpret'; got 'eager'",
        ),
        (
            {"passes": ("prefetch_gathers",)},
            "passes[0]: 'prefetch_gathers' needs sharded_params, which no earlier pass provides",
        ),
    ],
)
def test_a_pass_pipeline_made_in_python_is_checked(settings: dict[str, Any], message: str):
    settings = {"name": "mine", "executor": "interpret", "passes": (), **settings}
    settings["passes"] = tuple(pass_class(name)() for name in settings["passes"])
    with pytest.raises(PipelineError) as caught:
        PassPipeline(**settings)
    assert str(caught.value) == message
