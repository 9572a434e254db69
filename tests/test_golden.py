"""The golden fixture itself: where files lie, and what a mismatch says."""

from collections.abc import Callable
from pathlib import Path

import pytest
from golden_helper import TESTS, golden_base, golden_difference


def test_path_follows_from_the_test_name():
    assert golden_base(TESTS / "passes" / "test_shard_params.py", "test_gather[stage=3-a/b]") == (
        TESTS / "golden/passes/test_shard_params/test_gather-stage=3-a-b"
    )


def test_a_missing_file_names_the_command(tmp_path: Path):
    assert golden_difference(tmp_path / "a.ir", "x\n") == (
        f"{tmp_path}/a.ir is missing; run pytest --update-golden and read what it wrote"
    )


def test_a_mismatch_prints_a_unified_diff(tmp_path: Path):
    path = tmp_path / "a.ir"
    path.write_text("one\ntwo")
    assert golden_difference(path, "one\nthree\n") == (
        f"--- {path}\n+++ now\n@@ -1,2 +1,2 @@\n one\n-two\n+three\n"
        "if this is meant, run pytest --update-golden"
    )
    assert golden_difference(path, "one\ntwo") == ""


@pytest.mark.parametrize("word", ["a", "b c/d"])
def test_each_parameter_has_its_own_file(golden: Callable[..., None], word: str):
    golden(f"{word}\n")
