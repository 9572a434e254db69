"""Tables of benchmarks, names of systems and rates of links: right ones and refusals."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmark_runs import BENCHMARKS, benchmarks_on_path


@pytest.fixture(autouse=True)
def _benchmarks_on_path(monkeypatch: pytest.MonkeyPatch):
    with benchmarks_on_path(monkeypatch):
        yield


def test_medians_are_of_the_slowest_rank_and_ratios_of_medians():
    import summary

    def rank(*seconds: float) -> dict[str, Any]:
        return {"seconds": list(seconds)}

    fast = [{"a": rank(1, 5, 2)}, {"a": rank(3, 1, 1)}]
    assert summary._slowest(fast, "a", "seconds") == 3  # of 3, 5, 2


def test_figures_are_medians_over_starts_and_ratios_are_taken_in_each():
    import summary

    def start(baseline: float, ours: float) -> list[dict[str, Any]]:
        def figures(seconds: float) -> dict[str, Any]:
            return {
                "seconds": [seconds], "cpu_seconds": [seconds / 2], "sent": [], "metered": [8],
                "wire_seconds": [], "losses": [2.0],
            }  # fmt: skip

        return [{summary.BASELINE: figures(baseline), "a": figures(ours)}]

    [row] = summary.rows_of([start(1, 2), start(2, 3), start(5, 4)], ["a"], {})
    assert (row.step_seconds, row.ratios, row.cpu_seconds) == (3, [2, 1.5, 0.8], 1.5)
    assert (row.sent_bytes, row.metered_bytes, row.wire_seconds) == (None, 8, None)


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

    ddp = summary.Row("DDP eager", 0.5, [1.0], 0.25, 4e6, None, 0.0, 8_000_000)
    ours = summary.Row("zc level 2, zero3", 1.0, [2.0], 0.5, None, None, 2e-3, 4_000_000, calls=3)
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


def test_ratios_of_several_starts_have_a_range():
    import table

    ddp, ours = rows_of_two()
    rows = [replace(ddp, ratios=[1.0] * 3), replace(ours, ratios=[2.0, 1.6, 1.0])]
    lines = table.markdown(rows, "zc level 2, zero3", {}).splitlines()
    assert lines[2].startswith("| DDP eager | 500.0 | 1.00 | 0.62 (0.50-1.00) |")
    assert lines[3].startswith("| zc level 2, zero3 | 1,000.0 | 1.60 | 1.00 (1.00-1.00) |")


def test_a_step_is_split_into_compute_wire_and_rest():
    import summary
    import table

    floor = summary.Row("no communication, compiled", 0.4, [0.8], 0.25, 0.0, None, None)
    ours = replace(rows_of_two()[1], wire_seconds=0.5)
    assert table.gap([ours, floor])[2:] == [
        "| zc level 2, zero3 | 1,000.0 | 400.0 | 500.0 | 100.0 |"
    ]
    assert table.gap([*rows_of_two(), floor]) == table.gap([ours]) == []


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
    alone = ["DDP eager", whole, f"{whole} without clean_graph"]
    assert args.systems == alone
    assert args.reference == whole
    other = Path("other.yaml")
    other.write_text(Path("mine.yaml").read_text() + "  - merge_common\n")
    args = arguments.parse_arguments(["--ablate", "mine.yaml", "other.yaml"])
    whole = "zc level 2, other.yaml"
    assert args.systems == [*alone, whole, f"{whole} without merge_common"]
    args = arguments.parse_arguments(["--systems", "DDP compiled", "--ablate", "mine.yaml"])
    assert args.systems == [alone[0], "DDP compiled", *alone[1:]]
    assert capsys.readouterr().err == ""
