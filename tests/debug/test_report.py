import json
from dataclasses import replace

import pytest
from debug.programs import GatherAll, chain_step

from zc.debug.report import build_report, describe, memory, parameter_row, totals
from zc.debug.schema import Report, problems
from zc.program.layout import Layout
from zc.program.mesh import Mesh
from zc.program.program import Program


def report_of(layers: int = 1) -> tuple[Program, Report]:
    program = chain_step(layers)
    stages = [describe(program, 0, None, changed=True, seconds=0.0)]
    GatherAll().run(program)
    stages.append(describe(program, 1, GatherAll(), changed=True, seconds=0.0125))
    return program, build_report(program, stages, "name: test\n")


def test_report(golden):
    golden(json.dumps(report_of()[1], indent=1) + "\n", ".json")


def test_reports_satisfy_the_schema():
    report = report_of()[1]
    assert problems(report) == []
    assert problems(json.loads(json.dumps(report))) == []


def test_an_empty_program_has_a_report():
    program = Program("empty", 2, Mesh(), {}, [])
    stage = describe(program, 0, None, changed=True, seconds=0.0)
    report = build_report(program, [stage], "")
    assert problems(report) == []
    assert (report["world"], report["memory"]["peak"]) == (1, None)


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (["level"], "1", "report.level: int expected, got '1'"),
        (["training"], 1, "report.training: bool expected, got 1"),
        (["passes"], {}, "report.passes: a list expected, got {}"),
        (["passes", 1, "nodes"], [], "report.passes[1].nodes: an object expected, got []"),
        (["totals"], None, "report.totals: an object expected, got None"),
        (["passes", 0, "extra"], 1, "report.passes[0].extra: not in the schema"),
        (["parameters", 0, "shards", "dp"], "0", "report.parameters[0].shards.dp: int expected, "
         "got '0'"),
        (["totals", "traffic", "forward", "count"], 1.5,
         "report.totals.traffic.forward.count: int expected, got 1.5"),
    ],
)  # fmt: skip
def test_the_schema_refuses(path: list, value: object, problem: str):
    report = json.loads(json.dumps(report_of()[1]))
    target = report
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    assert problems(report) == [problem]


def test_a_missing_field_is_named():
    report = dict(report_of()[1])
    del report["world"]
    assert problems(report) == ["report.world: missing"]


def test_payload_is_the_formula():
    _, report = report_of(layers=3)
    traffic = report["totals"]["traffic"]
    assert report["totals"]["parameters"] == 3 * 64
    assert traffic["forward"]["payload_multiple"] == 1.0
    assert traffic["backward"]["payload_multiple"] == 1.0
    assert traffic["forward"]["wire_bytes"] == 3 * 256 * 3 // 4
    assert traffic["update"]["count"] == 0


def test_replicated_parameters_and_padding_are_listed():
    program = chain_step(2)
    names = list(program.params)
    first, second = (program.params[name] for name in names)
    program.params[names[0]] = replace(
        first, shape=(5, 3), layouts={"dp": Layout("dp", 4, (5, 3), 0)}, ties=("head.weight",)
    )
    program.params[names[1]] = replace(
        second, shape=(5,), layouts={"dp": Layout("dp", 4, (5,), None)}, trainable=False
    )
    padded = parameter_row(program.params[names[0]])
    assert (padded["shards"], padded["rest_bytes"]) == ({"dp": 0}, 64)
    assert (padded["padding_bytes"], padded["ties"]) == (4 * 64 - 60, ["head.weight"])
    sums = totals(program)
    assert (sums["parameters"], sums["trainable_parameters"]) == (20, 15)
    assert (sums["replicated"], sums["replicated_bytes"]) == ([names[1]], 20)
    assert sums["replicated_share"] == 0.25
    assert (sums["rest_bytes"], sums["padding_bytes"]) == (64 + 20, 4 * 64 - 60)


def test_inputs_are_known_by_their_kind_at_the_peak():
    program = chain_step(1)
    peak = memory(program)["peak"]
    assert peak is not None
    kinds = {value["node"]: (value["kind"], value["phase"]) for value in peak["values"]}
    assert kinds["w0"] == ("param", "input")
    assert kinds["x"] == ("user", "input")
    assert kinds["param"] == ("zc.param", "forward")
