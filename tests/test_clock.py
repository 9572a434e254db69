"""Where the time of compiling goes: parts within parts, programs one after the other."""

import time
from pathlib import Path

import pytest
import torch

from zc import clock
from zc.clock import Spent, attribute, mark, since_mark, spending, table

WAIT = 0.02


@pytest.fixture(autouse=True)
def _own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_spent", {})
    monkeypatch.setattr(clock, "_marked", {})


def test_what_is_spent_inside_counts_there():
    start = time.perf_counter()
    with spending("outer"):
        for _ in range(2):
            with spending("inner"):
                time.sleep(WAIT)
        attribute("other", 1.0)
    took = time.perf_counter() - start
    found = since_mark()
    assert list(found) == ["inner", "other", "outer"]
    assert found["inner"].times == 2
    assert found["inner"].seconds >= 2 * WAIT
    assert found["other"] == Spent(1.0, 1)
    assert found["outer"].seconds + found["inner"].seconds == pytest.approx(took - 1, abs=WAIT)


def test_what_fails_counts_too():
    with pytest.raises(ValueError, match="no"), spending("part"):
        raise ValueError("no")
    assert since_mark()["part"].times == 1


def test_each_program_counts_from_its_mark():
    clock.add("capture", 1.0)
    mark()
    assert since_mark() == {}
    clock.add("capture", 2.0)
    assert since_mark() == {"capture": Spent(2.0, 1)}


def test_what_goes_on_counts_as_far_as_it_is():
    with spending("outer"):
        time.sleep(WAIT)
        with spending("inner"):
            found = since_mark()
    assert found["outer"].seconds >= WAIT > found["inner"].seconds


def test_table():
    assert table({"Dynamo": Spent(1.5, 1), "Inductor": Spent(2.25, 3)}) == (
        "| part | seconds | times |\n|---|--:|--:|\n"
        "| Dynamo | 1.500 | 1 |\n| Inductor | 2.250 | 3 |\n| all | 3.750 | |\n"
    )


def test_dumps_show_it(tmp_path: Path):
    @torch.compile(backend="zero", options={"executor": "interpret", "dump": str(tmp_path)})
    def function(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    torch.compiler.reset()
    function(torch.ones(3))
    (file,) = tmp_path.glob("*/seconds.txt")
    parts = [line.split(" | ")[0].removeprefix("| ") for line in file.read_text().splitlines()]
    assert {"AOTAutograd", "capture", "pass shard_params", "verification", "instruments"} < {*parts}
