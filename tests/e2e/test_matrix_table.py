"""The table of results."""

from pathlib import Path

from e2e.equality import Config, Deviation
from e2e.matrix_table import read, row, title, update


def deviations(loss: float) -> list[Deviation]:
    return [
        Deviation(Config("gpt", 2, stage, level, "interpret", False), loss, 0.0, 0.0)
        for stage in range(4)
        for level in (1, 2)
    ]


def test_a_row() -> None:
    cells = row("gpt", deviations(1.23e-7)).split("|")
    assert [cell.strip() for cell in cells] == ["", "gpt", *["1e-07 / 0"] * 8, "0", ""]


def test_rows_are_replaced_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "MATRIX.md"
    heading = title(deviations(0.0)[0].config)
    assert heading == "## 2 ranks, interpret"
    first = {(heading, name): row(name, deviations(0.0)) for name in ("gpt", "lstm")}
    update(first, path)
    assert read(path) == first
    second = {(heading, "gpt"): row("gpt", deviations(1e-7))}
    update(second, path)
    assert read(path) == first | second
