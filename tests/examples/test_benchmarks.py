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
FUSED_TOLERANCE = 1e-5  # the peers' AdamW is torch's fused kernel, which rounds in another order
MODULES = (
    "gpt", "systems", "systems_torch", "systems_zc", "systems_titan", "titan_model",
    "systems_deepspeed", "catalogue", "sockets", "live_bytes", "starting", "rounds", "alone",
    "ranks", "slow_link", "summary", "table", "arguments", "train_step", "excerpt", "update",
)  # fmt: skip
SYSTEMS = (
    "DDP eager", "no communication, eager", "ZeroRedundancyOptimizer eager", "FSDP2 eager",
    "FSDP2 compiled, gathers once", "zc level 1, zero3", "zc level 2, zero2",
)  # fmt: skip
PEERS = {
    "torchtitan": ("SimpleFSDP", "SimpleFSDP, gathers once", "graph_trainer",
                   "graph_trainer, gathers once"),
    "deepspeed": ("DeepSpeed ZeRO-1", "DeepSpeed ZeRO-2", "DeepSpeed ZeRO-3"),
}  # fmt: skip


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


def tiny(folder: Path, *options: str) -> tuple[str, dict[str, dict[str, Any]]]:
    """The output of a tiny comparison, and the figures of each system."""
    out = run("train_step.py", "--tiny", f"--out={folder}", *options)
    figures = json.loads((folder / "train_step.json").read_text())
    return out, {row["system"]: row for row in figures["systems"]}


def test_a_tiny_step_of_every_kind_of_system(tmp_path: Path):
    saved = tmp_path / "saved.md"
    out, found = tiny(tmp_path, "--skip-alone", f"--save={saved}", "--systems", *SYSTEMS)
    head, rule, *rows = parse(out)
    assert [row[0] for row in rows] == list(SYSTEMS)
    assert {len(row) for row in (head, rule, *rows)} == {11}
    assert out.strip() in saved.read_text()
    assert "losses agree" in out
    parameters = json.loads((tmp_path / "train_step.json").read_text())["settings"]["parameters"]
    check_figures(found, parameters)


def check_figures(found: dict[str, Any], parameters: int) -> None:
    """Sizes of the tiny model divide evenly by two ranks: nothing is padded."""
    half = 4 * parameters / 2
    assert found["zc level 1, zero3"]["metered_bytes"] == 3 * half
    assert found["zc level 2, zero2"]["metered_bytes"] == 2 * half
    assert found["DDP eager"]["metered_bytes"] is None
    assert found["DDP eager"]["ratio"] == 1
    assert found["no communication, eager"]["loss_deviation"] is None
    for name in set(SYSTEMS) - {"no communication, eager"}:
        assert found[name]["loss_deviation"] < FUSED_TOLERANCE, name
        assert found[name]["step_seconds"] > 0
    if sys.platform == "linux":
        for name, factor in (("DDP eager", 2), ("zc level 1, zero3", 3), ("zc level 2, zero2", 2)):
            assert found[name]["sent_bytes"] == pytest.approx(factor * half, rel=OVERHEAD), name
        assert found["no communication, eager"]["sent_bytes"] < OVERHEAD * half


def test_systems_alone_show_their_memory_and_calls(tmp_path: Path):
    _, found = tiny(tmp_path, "--rounds=1", "--systems", "FSDP2 eager")
    baseline, fsdp2 = found["DDP eager"], found["FSDP2 eager"]
    assert fsdp2["peak_bytes"] < baseline["peak_bytes"]
    assert baseline["calls"] == 1  # the tiny model is one bucket
    assert fsdp2["calls"] == 5  # gathers of block and rest, again of the block, two reductions
    for row in (baseline, fsdp2):
        assert row["cold_seconds"] > 0
        assert row["warm_seconds"] is None  # nothing is cached when interpreting
        if sys.platform == "linux":
            assert row["resident_bytes"] > row["peak_bytes"]


@pytest.mark.parametrize("package", PEERS)
def test_peers_from_packages(package: str, tmp_path: Path):
    pytest.importorskip(package)
    out, found = tiny(tmp_path, "--skip-alone", "--systems", *PEERS[package])
    assert list(found) == ["DDP eager", *PEERS[package]]
    assert "losses agree" in out


def test_a_slow_link_holds_packets_back(tmp_path: Path):
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode:
        pytest.skip("no user and network namespaces here")
    systems = ("--systems", "no communication, eager")
    _, found = tiny(tmp_path, "--skip-alone", "--link=4mbit", *systems)
    row = found["DDP eager"]
    held_back = 8 * row["sent_bytes"] / 4e6
    assert row["step_seconds"] > held_back / 2  # what the link lets pass in one burst is less
    assert row["cpu_seconds"] < row["step_seconds"]


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


def test_figures_of_a_system_alone_are_the_largest():
    import summary

    cold = [{"start": 2.0}, {"start": 3.0}]
    warm = [
        {"start": 1.0, "peak": 10, "resident": None, "calls": 4},
        {"start": 0.5, "peak": 12, "resident": None, "calls": 4},
    ]
    assert summary.start_figures(cold, warm) == {
        "cold_seconds": 3.0, "warm_seconds": 1.0, "peak_bytes": 12, "resident_bytes": None,
        "calls": 4,
    }  # fmt: skip


def rows_of_two() -> list[Any]:
    import summary

    ddp = summary.Row("DDP eager", 0.5, 1.0, 0.25, 4e6, None, 0.0, 8_000_000)
    ours = summary.Row("zc level 2, zero3", 1.0, 2.0, 0.5, None, None, 2e-3, 4_000_000, calls=3)
    return [ddp, ours]


def test_a_table_has_ratios_to_its_reference():
    import table

    lines = table.markdown(rows_of_two(), "zc level 2, zero3", {"cores": 2, "link": None})
    assert lines.splitlines()[2:] == [
        "| DDP eager | 500.0 | 1.00 | 0.50 | 250.0 (0.50) | 8.0 (2.00) | - | 4.0 | - | - | - |",
        "| zc level 2, zero3 | 1,000.0 | 2.00 | 1.00 | 500.0 (1.00) | 4.0 (1.00) | - | - "
        "| 3 (1.00) | - | - |",
        "",
        "In brackets: ratio to zc level 2, zero3. cores 2",
        "",
        "losses DIFFER: largest relative difference from DDP eager 2.0e-03 (zc level 2, zero3), "
        "tolerance 1e-04",
    ]


def test_a_table_is_put_between_its_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from dataclasses import asdict

    import table

    page, figures = tmp_path / "page.md", tmp_path / "figures.json"
    page.write_text("before\n\n<!-- benchmark -->\nold\n<!-- /benchmark -->\n\nafter\n")
    saved = {
        "settings": {}, "reference": "zc level 2, zero3",
        "systems": [asdict(row) for row in rows_of_two()],
    }  # fmt: skip
    figures.write_text(json.dumps(saved))
    monkeypatch.setattr(sys, "argv", ["table.py", str(figures), "--into", str(page)])
    table.main()
    lines = page.read_text().splitlines()
    assert lines[:4] == ["before", "", "<!-- benchmark -->", ""]
    assert lines[4].startswith("| system | step ms | to DDP | to zc level 2, zero3 | CPU ms |")
    assert lines[-4:] == ["", "<!-- /benchmark -->", "", "after"]
    assert "old" not in lines


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs one line '<!-- benchmark -->', has 0"),
        ("<!-- benchmark -->", "needs one line '<!-- /benchmark -->', has 0"),
        (
            "<!-- /benchmark --><!-- benchmark -->",
            "has '<!-- /benchmark -->' before '<!-- benchmark -->'",
        ),
    ],
)
def test_marks_that_are_not_right_are_refused(text: str, message: str):
    import table

    with pytest.raises(ValueError) as caught:
        table.put_between(text, "block")
    assert str(caught.value) == message


def test_readme_has_a_place_for_the_table():
    import table

    text = (BENCHMARKS.parents[1] / "README.md").read_text()
    assert table.BEGIN in table.put_between(text, "block")


def refusal(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    import arguments

    with pytest.raises(SystemExit):
        arguments.parse_arguments(list(options))
    return capsys.readouterr().err.splitlines()[-1].partition("error: ")[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--systems", "FSDP2 eagre"],
            "no system named 'FSDP2 eagre'; did you mean 'FSDP2 eager'?",
        ),
        (
            ["--systems", "zc level 2, zero3 without cleen"],
            "pass pipeline 'zero3' has no pass 'cleen'",
        ),
        (["--zc", "3:zero3"], "argument --zc: give LEVEL:PIPELINE, as 2:zero3, not '3:zero3'"),
        (["--reference", "zc"], "--reference: no row named 'zc' in this run"),
    ],
)
def test_wrong_names_are_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert refusal(capsys, *options) == message


def test_a_name_like_no_system_is_refused_with_all_names(capsys: pytest.CaptureFixture[str]):
    import catalogue

    found = refusal(capsys, "--systems", "?")
    assert found == f"no system named '?'; there are {', '.join(catalogue.names())}"


def test_a_rate_has_a_unit():
    import slow_link

    with pytest.raises(ValueError) as caught:
        slow_link.rate_of("1 Gb/s")
    assert str(caught.value) == (
        "a rate is a whole number of kbit, mbit or gbit, as '1gbit', not '1 Gb/s'"
    )


def test_a_link_needs_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import slow_link

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as caught:
        slow_link.start_inside()
    assert str(caught.value) == (
        "--link needs the programs unshare, nsenter, ip, tc; missing: unshare, nsenter, ip, tc"
    )


def test_a_link_needs_namespaces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import slow_link

    for program in ("nsenter", "ip", "tc", "unshare"):
        (tmp_path / program).write_text("#!/bin/sh\necho not permitted >&2; exit 1\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    with pytest.raises(SystemExit) as caught:
        slow_link.start_inside()
    assert str(caught.value) == "--link needs user and network namespaces: not permitted"


def test_systems_of_missing_packages_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import catalogue

    monkeypatch.setattr(catalogue.Family, "is_installed", lambda self: self.package is None)
    assert catalogue.choose(["SimpleFSDP", "FSDP2 eager"]) == ["DDP eager", "FSDP2 eager"]
    assert capsys.readouterr().err == (
        "left out: SimpleFSDP: needs torchtitan: pip install 'zc[bench]', or make bench\n"
    )


def test_a_pipeline_is_ablated_pass_by_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    import arguments

    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(
        "passes:\n  - shard_params: {zero_stage: 3}\n  - shard_update\n  - clean_graph\n"
    )
    args = arguments.parse_arguments(["--ablate", "mine.yaml"])
    whole = "zc level 2, mine.yaml"
    assert args.systems == ["DDP eager", whole, f"{whole} without clean_graph"]
    assert args.reference == whole
    assert capsys.readouterr().err == ""


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
