"""Predicted time in dumps: figures that add up, spans that are merged, and the drawing."""

from dataclasses import replace

from debug.programs import GatherAll, chain_step

from zc.cost.simulate import simulate
from zc.cost.timeline import Span
from zc.debug.html import render
from zc.debug.lane_plot import lane_plot
from zc.debug.report import build_report, describe
from zc.debug.schema import Report, problems
from zc.debug.timeline import lane_timeline, merge_spans, timing
from zc.devices.reader import builtin_device
from zc.program.program import Program


def timed_program() -> Program:
    program = chain_step(2)
    GatherAll().run(program)
    program.device = builtin_device("cpu")
    return program


def report_of(program: Program) -> Report:
    stage = describe(program, 0, None, changed=True, seconds=0.0)
    return build_report(program, [stage], "name: test\n")


def test_figures_are_those_of_the_simulation():
    program = timed_program()
    assert program.device is not None
    found, expected = timing(program, True), simulate(program, program.device, fused=True)
    assert found is not None
    assert found["seconds"] == expected.seconds
    assert found["exposed"] == expected.exposed_seconds
    assert sum(found["phases"].values()) == expected.seconds
    assert found["lanes"] == expected.lane_seconds
    slower = timing(program, False)
    assert slower is not None
    assert slower["compute"] > found["compute"]


def test_a_program_without_a_device_has_no_times():
    program = chain_step(1)
    report = report_of(program)
    assert (report["timeline"], report["passes"][0]["timing"]) == (None, None)
    assert problems(report) == []
    assert lane_plot(None) == "<p>No time is predicted for this program.</p>"
    assert "<p>No time is predicted for this program.</p>" in render(report, {}, "")


def test_reports_with_times_satisfy_the_schema():
    report = report_of(timed_program())
    assert problems(report) == []
    timeline = report["timeline"]
    assert timeline is not None
    assert timeline["device"] == "cpu"
    assert {span["lane"] for span in timeline["spans"]} == {"compute", "gather"}  # one_lane
    text = render(report, {}, "")
    assert '<section id="time"><h2>Time</h2>' in text
    assert "predicted for device cpu: " in text
    assert "<span>predicted step</span>" in text
    assert "<span>exposed</span>" in text


def test_spans_without_a_gap_are_one():
    first, second, third = list(chain_step(1).graph.nodes)[:3]
    spans = [
        Span(first, "compute", 0.0, 1.0), Span(second, "compute", 1.1, 2.0),
        Span(second, "gather", 0.5, 3.0), Span(third, "compute", 2.5, 3.0),
    ]  # fmt: skip
    merged = merge_spans(spans, 0.2)
    assert [(s["lane"], s["start"], s["end"], s["count"]) for s in merged] == [
        ("compute", 0.0, 2.0, 2), ("gather", 0.5, 3.0, 1), ("compute", 2.5, 3.0, 1),
    ]  # fmt: skip


def test_lanes(golden):
    device = replace(builtin_device("cpu"), one_lane=False)
    program = timed_program()
    program.device = device
    golden(lane_plot(lane_timeline(program, True)) + "\n", ".svg")
