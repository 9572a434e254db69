"""The benchmarks run on a tiny model, and what they count is what the formulas say."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"
OVERHEAD = 0.05  # of bytes on sockets: a barrier and gloo's headers, on messages of a few KB
PEAK_TOLERANCE = 0.10
BEGIN, END = "<!-- from examples/benchmarks/UPDATE.md -->\n", "<!-- end -->\n"
MODULES = (
    "gpt",
    "systems",
    "sockets",
    "live_bytes",
    "rounds",
    "summary",
    "train_step",
    "excerpt",
    "update",
)
EAGER_UPDATE = "zc level 2, zero3, eager update"
SYSTEMS = ("DDP eager", "DDP compiled", "FSDP2 eager", "FSDP2 compiled",
           "zc level 1, zero3", "zc level 2, zero2", EAGER_UPDATE)  # fmt: skip
KERNEL = 1e-5  # relative, of losses: a generated kernel rounds a product and a sum once


@pytest.fixture(autouse=True)
def _benchmarks_on_path(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS.parent))
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


def run(script: str, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), "--executor=interpret", *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def parse(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [line.strip("| ").split(" | ") for line in lines]


def test_a_tiny_step_of_every_kind_of_system(tmp_path: Path):
    saved = tmp_path / "saved.md"
    out = run(
        "train_step.py", "--tiny", f"--out={tmp_path}", f"--save={saved}", "--systems", *SYSTEMS
    )
    head, rule, *rows = parse(out)
    assert [row[0] for row in rows] == list(SYSTEMS)
    assert {len(row) for row in (head, rule, *rows)} == {10}
    assert out.strip() in saved.read_text()
    assert "losses agree" in out
    figures = json.loads((tmp_path / "train_step.json").read_text())
    found = {row["system"]: row for row in figures["systems"]}
    check_figures(found, figures["settings"]["parameters"])


def check_figures(found: dict[str, Any], parameters: int) -> None:
    """Sizes of the tiny model divide evenly by two ranks: nothing is padded."""
    half = 4 * parameters / 2
    assert found["zc level 1, zero3"]["metered_bytes"] == 3 * half
    assert found["zc level 2, zero2"]["metered_bytes"] == 2 * half
    assert found["DDP eager"]["metered_bytes"] is None
    assert found["DDP eager"]["ratio"] == 1
    for row in found.values():
        whole = row["system"] == "zc level 2, zero2"  # else nothing computes in another order
        assert row["loss_deviation"] <= (KERNEL if whole else 0)
        assert row["step_seconds"] > 0
        assert row["peak_bytes"] > half
    if sys.platform == "linux":
        for name, factor in (("DDP eager", 2), ("zc level 1, zero3", 3), ("zc level 2, zero2", 2)):
            assert found[name]["sent_bytes"] == pytest.approx(factor * half, rel=OVERHEAD), name
    state = 4 * half  # parameters, gradients and two moments
    assert state < found["zc level 2, zero2"]["update_bytes"] < found[EAGER_UPDATE]["update_bytes"]
    assert found["zc level 1, zero3"]["peak_bytes"] < found["zc level 2, zero2"]["peak_bytes"]
    assert found["zc level 2, zero2"]["peak_bytes"] < found["DDP eager"]["peak_bytes"]


def test_predictions_of_memory_and_volume(tmp_path: Path):
    options = ("--layers=1", "--width=64", "--length=32", "--levels=2", f"--out={tmp_path}")
    head, _, *rows = parse(run("memory.py", *options, "--stages", "0", "3"))
    assert [row[0] for row in rows] == ["level 2, zero0", "level 2, zero3"]
    assert len(head) == len(rows[0]) == 7
    for row in json.loads((tmp_path / "memory.json").read_text()):
        assert row["metered_sent"] == row["predicted_sent"], row
        assert row["measured_peak"] == pytest.approx(row["predicted_peak"], rel=PEAK_TOLERANCE), row


def test_live_bytes_are_counted_once_and_until_freed():
    from live_bytes import LiveBytes

    held = torch.ones(10)
    live = LiveBytes([held])
    with live:
        a = torch.ones(100)
        b = a.view(10, 10)[2:]
        del a
        assert live._alive() == 440
        del b
        assert live._alive() == 40
        c = torch.ones(50)
        c.untyped_storage().resize_(0)
        assert live._alive() == 40
        c.untyped_storage().resize_(200)
        assert live._alive() == 240
    assert live.peak == 440


def test_medians_are_of_the_slowest_rank_and_ratios_of_medians():
    import summary

    def rank(*seconds: float) -> dict[str, Any]:
        return {"seconds": list(seconds)}

    fast = [{"a": rank(1, 5, 2)}, {"a": rank(3, 1, 1)}]
    assert summary._step_seconds(fast, "a") == 3  # of 3, 5, 2


def test_losses_that_differ_are_named():
    import summary

    def row(name: str, deviation: float) -> summary.Row:
        return summary.Row(name, 1, 1, 1, 1, 1, None, None, 1, None, deviation)

    rows = [row("DDP eager", 0.0), row("zc", 2e-3)]
    assert not summary.losses_agree(rows)
    assert summary.loss_line(rows) == (
        "losses DIFFER: largest relative difference from DDP eager 2.0e-03 (zc), tolerance 1e-04"
    )
    assert summary.markdown(rows, {"cores": 2}).splitlines()[3] == (
        "| zc | 1,000.0 | 1.00 | 1,000.0 | 0.0 | 0.0 | - | - | 1.0 | - |"
    )


def test_an_update_of_every_system(tmp_path: Path):
    saved, readme = tmp_path / "saved.md", tmp_path / "readme.md"
    readme.write_text(f"before\n{BEGIN}old\n{END}after\n")
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "update.py"), "--millions", "0.01", "--rounds", "2",
         "--systems", "loop", "foreach", "fused", "zc", f"--out={tmp_path}",
         f"--save={saved}", f"--readme={readme}"],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [row for row in parse(done.stdout) if row[0].startswith("0.01M")]
    assert [row[:2] for row in rows] == [
        [f"0.01M {kind}", system]
        for kind in ("few", "many")
        for system in ("loop", "foreach", "fused", "zc")
    ]
    assert rows[3][-1] == "28"
    from excerpt import excerpt

    assert readme.read_text() == f"before\n{BEGIN}{excerpt(saved.read_text())}{END}after\n"


def test_systems_of_an_update_share_their_moments():
    """So that many of them fit into memory; a step must not replace what it shares."""
    import update

    args = update.parse_arguments(["--device=cpu"])
    params = [torch.nn.Parameter(torch.rand(size)) for size in (10, 70)]
    moments = [{key: torch.zeros_like(p) for key in update.MOMENTS} for p in params]
    for system in args.systems:
        before = [entries["exp_avg"].clone() for entries in moments]
        for param in params:
            param.grad = torch.rand_like(param)
        update.SYSTEMS[system](params, moments)()
        assert not any(torch.equal(b, m["exp_avg"]) for b, m in zip(before, moments, strict=True))


def test_the_readme_has_the_rows_of_the_update_table():
    from excerpt import refreshed

    readme = (BENCHMARKS.parents[1] / "README.md").read_text()
    assert refreshed(readme, (BENCHMARKS / "UPDATE.md").read_text()) == readme


def test_a_page_without_a_place_for_the_excerpt():
    from excerpt import refreshed

    with pytest.raises(SystemExit) as error:
        refreshed("nothing", "")
    assert str(error.value) == (
        "the page has no place for the excerpt: '<!-- from examples/benchmarks/UPDATE.md -->', "
        "then '<!-- end -->'"
    )


def test_ways_of_carrying_out_collectives(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "wire.py"), "--rounds=1", "--items=2",
         f"--out={tmp_path}", "--sizes", "4096", "65536"],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    _, _, *rows = parse(done.stdout)
    assert [row[:2] for row in rows] == [
        [op, size] for op in ("all_gather", "reduce_scatter") for size in ("4", "66")
    ]
    assert all(row[-1] in ("native", "pairwise", "all_to_all") for row in rows)
    (table,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    measured = ast.literal_eval(table)
    for op in ("all_gather", "reduce_scatter"):
        by_bytes = measured["gloo"][op][2]
        assert min(by_bytes) == 0
        assert set(by_bytes) <= {0, 65536}
