"""The benchmarks run on a tiny model, and what they count is what the formulas say."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from benchmark_runs import BENCHMARKS, benchmarks_on_path, parse, run, tiny
from multiprocess import run_ranks

from zc.comm import wire

OVERHEAD = 0.05  # of bytes on sockets: a barrier and gloo's headers, on messages of a few KB
PEAK_TOLERANCE = 0.10
BEGIN, END = "<!-- from examples/benchmarks/UPDATE.md -->\n", "<!-- end -->\n"
FUSED_TOLERANCE = 1e-5  # the peers' AdamW is torch's fused kernel, which rounds in another order
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
    with benchmarks_on_path(monkeypatch):
        yield


def test_a_tiny_step_of_every_kind_of_system(tmp_path: Path):
    saved = tmp_path / "saved.md"
    options = ["--starts=2", "--skip-alone", f"--save={saved}"]
    out, found = tiny(tmp_path, *options, "--systems", *SYSTEMS)
    head, rule, *rows = parse(out)
    assert [row[0] for row in rows] == list(SYSTEMS)
    assert {len(row) for row in (head, rule, *rows)} == {11}
    assert out.strip() in saved.read_text()
    assert "losses agree" in out
    check_figures(found, json.loads((tmp_path / "train_step.json").read_text())["settings"])


def test_an_ablation_says_what_each_pass_has_done_to_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with benchmarks_on_path(monkeypatch):
        import arguments
        import programs

        found = list(
            programs.differences(arguments.parse_arguments(["--tiny", "--ablate", "zero3"]))
        )
    assert "- zero3 without `lower_update` is another program" in found
    (buckets,) = [line for line in found if "bucket_collectives" in line]
    said = "- zero3 without `bucket_collectives` is another program; buckets: 3; the step takes "
    assert buckets.startswith(said)
    (kept,) = [line for line in found if "keep_gathered" in line]
    assert kept.startswith("- zero3 without `keep_gathered` is the same program; left alone: ")


def check_figures(found: dict[str, Any], settings: dict[str, int]) -> None:
    """Sizes of the tiny model divide evenly by two ranks: nothing is padded.

    zero3 gathers vectors once: weight and bias of two norms in each layer and of the last.
    """
    half = 4 * settings["parameters"] / 2
    half_of_vectors = 4 * 2 * (2 * settings["layers"] + 1) * settings["width"] / 2
    assert found["zc level 1, zero3"]["metered_bytes"] == 3 * half - half_of_vectors
    assert found["zc level 2, zero2"]["metered_bytes"] == 2 * half
    assert found["DDP eager"]["metered_bytes"] is found["DDP eager"]["wire_seconds"] is None
    assert found["zc level 1, zero3"]["wire_seconds"] > 0
    assert found["DDP eager"]["ratios"] == [1, 1]
    assert found["no communication, eager"]["loss_deviation"] is None
    for name in set(SYSTEMS) - {"no communication, eager"}:
        assert found[name]["loss_deviation"] < FUSED_TOLERANCE, name
        assert found[name]["step_seconds"] > 0
    if sys.platform == "linux":
        for name, factor in (("DDP eager", 2), ("zc level 1, zero3", 3), ("zc level 2, zero2", 2)):
            assert found[name]["sent_bytes"] == pytest.approx(factor * half, rel=OVERHEAD), name
        assert found["no communication, eager"]["sent_bytes"] < OVERHEAD * half


def check_replay(rank: int, world: int) -> None:
    sys.path.insert(0, str(BENCHMARKS))
    from wire_alone import WireAlone, record

    group = dist.group.WORLD
    assert group is not None
    wire.METER.reset()
    total, alone = record(lambda: wire.all_reduce(torch.ones(6), group, "sum").wait().sum())
    wire.all_gather(torch.ones(4), group).wait()
    assert (total.item(), len(alone.collectives)) == (12, 1)
    wire.METER.reset()
    alone.replay()
    assert wire.METER.sent == {"all_reduce": 24}
    assert record(lambda: 3) == (3, WireAlone())


def test_collectives_are_repeated_alone():
    run_ranks(check_replay, 2)


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


def test_predictions_of_time_and_peak(tmp_path: Path):
    sizes = ("--layers=1", "--width=64", "--length=16", "--runs=3")
    options = (*sizes, "--starts=2", "--device=cpu", "--pipelines", "zero3", f"--out={tmp_path}")
    head, _, row = parse(run("predict.py", *options))
    assert row[0] == "zero3"
    assert len(head) == len(row) == 10
    (found,) = json.loads((tmp_path / "predict.json").read_text())
    assert found["measured_peak"] == pytest.approx(found["predicted_peak"], rel=PEAK_TOLERANCE)
    assert len(found["seconds"]) == 6
    assert found["time_ratio"] == pytest.approx(sum(found["time_ratios"]) / 2)
    assert found["predicted_seconds"] > found["exposed_seconds"] > 0


def test_seconds_of_passes_by_depth(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "scale.py"), "--layers", "1", "2", "--optimizer",
         f"--out={tmp_path}"],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    head, _, nodes, *rows = parse(done.stdout)
    assert head == ["1 layers", "2 layers", "x4"]
    assert float(nodes[1].replace(",", "")) < float(nodes[2].replace(",", ""))
    names = {row[0] for row in rows}
    assert names >= {"capture", "text", "first check", "checks", "shard_params", "all"}


def test_no_cap_is_exceeded(tmp_path: Path):
    sizes = ("--layers=1", "--width=64", "--length=16", "--steps=1", f"--out={tmp_path}")
    _, _, *rows = parse(run("caps.py", *sizes))
    assert [row[-1] for row in rows] == ["yes", "-"]
    least, free = json.loads((tmp_path / "caps.json").read_text())
    assert least["predicted_peak"] < free["predicted_peak"]  # there is something to use
    assert least["predicted_seconds"] > free["predicted_seconds"]


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
    assert all(row[-1] in ("native", "pairwise", "all_to_all", "direct") for row in rows)
    (table,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    measured = ast.literal_eval(table)
    for op in ("all_gather", "reduce_scatter"):
        by_bytes = measured["gloo"][op][2]
        assert min(by_bytes) == 0
        assert set(by_bytes) <= {0, 65536}
