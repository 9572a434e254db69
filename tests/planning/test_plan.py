"""``zc plan``: tables that the ZeRO paper and hand-made models give, and every message."""

import builtins
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from zc.cli import main
from zc.devices.reader import load_device
from zc.planning.closed import Precision, Workload, gpt_rows
from zc.planning.models import huggingface_config
from zc.planning.rows import Row, ranked
from zc.planning.sizes import GPT_SIZES
from zc.planning.table import plan_text, why

SECONDS = 30  # for every size on every number of ranks; some seconds on an idle machine
LLAMA = ("hidden_size=64", "intermediate_size=128", "num_hidden_layers=1",
         "num_attention_heads=4", "num_key_value_heads=2", "vocab_size=64")  # fmt: skip
SMALL = ("--batch=2", "--sequence=16", "--world", "4", "--device=cpu")


def plan(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["plan", *options]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.mark.parametrize("parameters", ["7.5B", "128B", "1T"])
def test_table_1_of_the_zero_paper(parameters: str, capsys: Any, golden: Any):
    worlds = ("1", "4", "16", "64", "256", "1024")
    golden(plan(capsys, f"params:{parameters}", "--world", *worlds))


def test_a_gpt_by_formula(capsys: Any, golden: Any):
    options = ("--world", "64", "1024", "--recompute", "--batch=4", "--formulas")
    golden(plan(capsys, "gpt:7.5B", *options))


def test_every_gpt_on_every_number_of_ranks_in_seconds():
    start = time.process_time()
    device = load_device("h100")
    for size in GPT_SIZES.values():
        for power in range(3, 13):
            rows = gpt_rows(size, Workload(), Precision(), device, 2**power)
            assert len(rows) == 4
            assert rows[3].peak_bytes < rows[2].peak_bytes < rows[1].peak_bytes
    assert time.process_time() - start < SECONDS


def test_gpt_sizes_are_what_they_are_called():
    from zc.cost.symbolic import evaluate, gpt_parameters

    for name, size in GPT_SIZES.items():
        called = float(name[:-1]) * (1e12 if name.endswith("T") else 1e9)
        assert evaluate(gpt_parameters(), **size.symbols()) == pytest.approx(called, rel=0.06)


def test_a_model_from_python(capsys: Any, golden: Any):
    golden(plan(capsys, "planning.tiny:build", *SMALL, "--memory-cap=30KB"))


def test_a_model_that_returns_an_object_with_a_loss(capsys: Any):
    text = plan(capsys, "planning.tiny:build_lines", *SMALL, "--pipelines", "zero3", "--json")
    found = json.loads(text)
    assert (found["model"], found["device"]) == ("planning.tiny:build_lines", "cpu")
    (row,) = found["rows"]
    assert (row["pipeline"], row["world"], row["fits"]) == ("zero3", 4, True)
    sent = 3 * 16 * 64 * 4 * 3 // 4  # gathered twice, reduced once
    assert row["sent_bytes"] == sent
    assert 0 < row["best_seconds"] <= row["step_seconds"]


def test_a_hugging_face_model(tmp_path: Path, capsys: Any):
    path = tmp_path / "config.json"
    settings = {key: int(value) for key, value in (x.split("=") for x in LLAMA)}
    path.write_text(json.dumps(settings | {"model_type": "llama"}))
    by_file = huggingface_config(str(path), [])
    assert by_file.to_dict() == huggingface_config("llama", list(LLAMA)).to_dict()
    (row,) = json.loads(plan(capsys, str(path), *SMALL, "--pipelines", "zero2", "--json"))["rows"]
    assert row["fits"]
    assert row["step_seconds"] > row["exposed_seconds"] > 0


def test_what_fits_comes_first_and_the_fastest_of_it():
    rows = [Row(8, "big", 900, 1.0), Row(8, "slow", 90, 3.0), Row(8, "fast", 100, 2.0),
            Row(8, "odd", refused="pass 1 failed"), Row(8, "bigger", 990, 0.5),
            Row(4, "few", 999, 9.0)]  # fmt: skip
    assert [row.pipeline for row in ranked(rows, 500)] == [
        "few", "fast", "slow", "big", "bigger", "odd",
    ]  # fmt: skip
    assert why(rows[3], 500) == "pass 1 failed"
    assert "       pass 1 failed\n" in plan_text(rows, 500)


MESSAGES = [
    (["gpt:7B"], r"gpt:7B: no such size; did you mean '76B'\?; there are 1B, 1.7B, .*1T"),
    (["params:many"], "params:many: not a count of parameters; write 7.5B, 128B or 1T"),
    (["gpt:1B", "--world", "0"], "--world must be 1 or more; got 0"),
    (["gpt:1B", "--pipelines", "mine.yaml"],
     "--pipelines mine.yaml: formulas know zero0, zero1, zero2, zero3; give a Python function or a "
     "Hugging Face model to compare others"),
    (["nowhere:build"], "nowhere:build: cannot import 'nowhere': No module named 'nowhere'"),
    (["planning.tiny:biuld"],
     r"planning.tiny:biuld: no function 'biuld' in planning.tiny; did you mean 'build'\?"),
    (["planning.tiny:build_wrong"],
     "planning.tiny:build_wrong: returned list; return the torch.nn.Module to train"),
    (["planning.tiny:build_other_shapes", "--world", "2"],
     r"planning.tiny:build_other_shapes: cannot be captured with inputs \[\(1, 7\)\]: .+"),
    (["lama"],
     "lama: transformers knows no model type 'lama' with these settings; name one such as llama, "
     "a .json file, gpt:7.5B, or a Python function as module:name"),
    (["nowhere.json"], "nowhere.json: cannot be read: No such file or directory"),
    (["llama", "--set", "layers"],
     "--set layers: write key=value, as in --set num_hidden_layers=2"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), MESSAGES, ids=[" ".join(m[0]) for m in MESSAGES])
def test_what_cannot_be_planned(options: list[str], message: str, capsys: Any):
    assert main(["plan", *options]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(message, err.strip()), err


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not JSON: Expecting property name"), ("[]", "no Hugging Face config: it has no"),
     ("{}", "no Hugging Face config: it has no 'model_type'")],
)  # fmt: skip
def test_files_that_are_no_configs(text: str, message: str, tmp_path: Path, capsys: Any):
    path = tmp_path / "config.json"
    path.write_text(text)
    assert main(["plan", str(path)]) == 1
    assert capsys.readouterr().err.startswith(f"{path}: {message}")


def test_transformers_is_needed_for_its_models(monkeypatch: pytest.MonkeyPatch, capsys: Any):
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "transformers":
            raise ImportError
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["plan", "llama"]) == 1
    assert capsys.readouterr().err == (
        "llama: a Hugging Face model needs transformers: pip install 'zc[examples]'; or give a "
        "Python function as module:name\n"
    )
