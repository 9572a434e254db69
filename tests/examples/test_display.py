"""What the demo prints, and the text it reads."""

import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _examples_on_path(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    for name in ("display", "corpus", "measure", "gpt"):
        sys.modules.pop(name, None)


def test_a_table_has_its_numbers_to_the_right():
    from display import table

    assert table([["held", "DDP"], ["parameters", "42.9 MB"]]) == (
        "  held             DDP\n  ────────────────────\n  parameters   42.9 MB"
    )


def test_what_would_upset_a_terminal_becomes_a_dot():
    from display import printable

    assert printable(b"a\x1b[0m\tb\r\n\xff\xc3\xa9") == "a·[0m   b·\n·é"


def test_the_moving_average_does_not_start_at_zero():
    from display import smooth

    assert [round(y, 3) for _, y in smooth([(0, 4.0), (1, 4.0), (2, 2.0)], keep=0.5)] == [
        4.0,
        4.0,
        2.857,
    ]


def test_a_curve_in_characters():
    from display import text_curve

    lines = text_curve([(float(i), 8.0) for i in range(4)]).splitlines()
    assert lines[0] == "   8.00 ┤████"
    assert lines[-1] == "        └────"


def test_the_curve_needs_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from display import draw_curve

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert draw_curve(tmp_path / "loss.png", "title", [(0.0, 1.0)], [(0.0, 1.0)]) is None


def test_batches_are_passages_and_what_follows():
    from corpus import draw_batch

    text = torch.arange(50, dtype=torch.uint8)
    x, y = draw_batch(text, 3, 8, torch.Generator().manual_seed(0))
    assert x.shape == y.shape == (3, 8)
    assert torch.equal(x + 1, y)


def test_the_text_is_the_same_every_time_and_split_by_file():
    from corpus import load_corpus

    first, again = load_corpus(), load_corpus()
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    training, validation = first
    assert 0.01 < len(validation) / len(training) < 0.2


def test_the_demo_model_has_ten_million_parameters():
    from gpt import GPT, Config

    with torch.device("meta"):
        model = GPT(Config())
    assert sum(p.numel() for p in model.parameters()) == 10_725_120


def test_the_bar_gives_way_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch):
    from display import ProgressBar

    bar = ProgressBar(4)
    assert bar._line(2, "2/4") == " 50% " + "━" * 14 + " " * 14 + " 2/4"
    bar._terminal = True
    monkeypatch.setenv("COLUMNS", "20")
    assert bar._line(2, "2/4") == " 50% " + "━" * 5 + " " * 5 + " 2/4"
    assert bar._line(2, "a text of many words") == " 50%  a text of man"
