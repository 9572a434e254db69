"""The pass manager: order, time, verification, instruments, failures and skipping."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from zc.errors import PipelineError, VerifyError
from zc.pipelines.instrument import Instrument
from zc.pipelines.manager import run_passes, select_passes
from zc.pipelines.pipeline import PassPipeline
from zc.program.mesh import Mesh
from zc.program.nodes import set_input
from zc.program.pass_base import Pass
from zc.program.program import Program
from zc.program.stamps import Stamp, set_stamp
from zc.program.tables import Input, Output
from zc.program.units import Bytes


@dataclass(frozen=True)
class Establish(Pass):
    kind = "required"
    provides = frozenset({"meaning"})

    def run(self, program: Program) -> None:
        program.name += " established"


@dataclass(frozen=True)
class Tidy(Pass):
    requires = frozenset({"meaning"})
    provides = frozenset({"tidiness"})

    def run(self, program: Program) -> None:
        program.name += " tidied"


@dataclass(frozen=True)
class Polish(Pass):
    kind = "numeric"
    requires = frozenset({"tidiness"})

    def run(self, program: Program) -> None:
        program.name += " polished"


@dataclass(frozen=True)
class ForgetTypes(Pass):
    def run(self, program: Program) -> None:
        for node in program.graph.find_nodes(op="call_function", target=torch.ops.aten.sin.default):
            node.meta["val"] = node.meta["val"].new_empty((5,))


@dataclass(frozen=True)
class Break(Pass):
    error: str = "KeyError"

    def run(self, program: Program) -> None:
        raise PipelineError("no such layout") if self.error == "PipelineError" else KeyError("w0")


class Log(Instrument):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.seconds: list[float] = []

    def before_passes(self, program: Program, passes: tuple[Pass, ...]) -> None:
        self.lines.append(f"{program.name}: {', '.join(p.name for p in passes)}")

    def after_pass(self, index: int, applied: Pass, program: Program, seconds: float) -> None:
        self.lines.append(f"{index} {applied.name}: {program.name}")
        self.seconds.append(seconds)

    def after_passes(self, program: Program) -> None:
        self.lines.append(f"end: {program.name}")


def tiny_program() -> Program:
    graph = make_fx(lambda x: [x.sin().cos()], tracing_mode="fake")(torch.ones(4)).graph
    (x,) = graph.find_nodes(op="placeholder")
    set_input(x, Input("user", "x", 0))
    for node in graph.nodes:
        set_stamp(node, Stamp())
    return Program(
        name="step",
        level=2,
        mesh=Mesh(),
        graphs={"step": graph},
        outputs=[Output("user")],
        fake_mode=x.meta["val"].fake_mode,
        training=False,
    )


def pipeline_of(*passes: Pass, memory_cap: Bytes | None = None) -> PassPipeline:
    return PassPipeline("mine", "interpret", passes, memory_cap)


ALL = pipeline_of(Establish(), Tidy(), Polish(), Tidy())


def test_passes_run_in_order_and_instruments_watch():
    program, log, other = tiny_program(), Log(), Log()
    run_passes(program, ALL, [log, other])
    assert log.lines == [
        "step: establish, tidy, polish, tidy",
        "1 establish: step established",
        "2 tidy: step established tidied",
        "3 polish: step established tidied polished",
        "4 tidy: step established tidied polished tidied",
        "end: step established tidied polished tidied",
    ]
    assert other.lines == log.lines
    assert all(seconds >= 0 for seconds in log.seconds)


def test_optional_and_numeric_passes_can_be_skipped():
    program, log = tiny_program(), Log()
    run_passes(program, ALL, [log], skip=frozenset({"tidy", "polish"}))
    assert log.lines[0] == "step: establish"
    assert program.name == "step established"


@pytest.mark.parametrize(
    ("skip", "message"),
    [
        ({"establish"}, "cannot skip 'establish': it is a required pass"),
        (
            {"polsh"},
            "cannot skip 'polsh': pass pipeline 'mine' has no such pass; did you mean 'polish'?",
        ),
        (
            {"tidy"},
            "cannot skip 'tidy': passes[2]: 'polish' needs tidiness, "
            "which no earlier pass provides",
        ),
    ],
)
def test_what_cannot_be_skipped(skip: set[str], message: str):
    with pytest.raises(PipelineError) as caught:
        select_passes(ALL, frozenset(skip))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("KeyError", "pass 2, 'break', failed: KeyError: 'w0'"),
        ("PipelineError", "pass 2, 'break', failed: no such layout"),
    ],
)
def test_a_failing_pass_is_named_and_its_error_kept(error: str, message: str):
    log = Log()
    with pytest.raises(PipelineError) as caught:
        run_passes(tiny_program(), pipeline_of(Establish(), Break(error)), [log])
    assert str(caught.value) == message
    assert type(caught.value.__cause__).__name__ == error
    assert log.lines[-1] == "1 establish: step established"


def test_a_pass_that_leaves_a_wrong_program_is_named_after_it_was_dumped():
    log = Log()
    with pytest.raises(VerifyError) as caught:
        run_passes(tiny_program(), pipeline_of(Establish(), ForgetTypes(), Break()), [log])
    assert str(caught.value) == f"after pass 2, 'forget_types': {caught.value.__cause__}"
    assert log.lines[-1] == "2 forget_types: step established"


def test_a_program_that_is_wrong_as_captured_blames_no_pass():
    program = tiny_program()
    ForgetTypes().run(program)
    with pytest.raises(VerifyError) as caught:
        run_passes(program, pipeline_of(Establish()))
    assert str(caught.value) == f"before the first pass: {caught.value.__cause__}"


def test_verification_can_be_left_out():
    run_passes(tiny_program(), pipeline_of(ForgetTypes()), verify=False)


def test_the_memory_cap_holds_after_the_last_pass():
    program, log = tiny_program(), Log()
    passes = pipeline_of(Establish(), Tidy(), memory_cap=Bytes("1B"))
    with pytest.raises(VerifyError) as caught:
        run_passes(program, passes, [log])
    assert str(caught.value).startswith("after pass 2, 'tidy': ")
    assert "the cap is 1" in str(caught.value)
    assert program.cap_bytes == 1


@dataclass(frozen=True)
class Idle(Pass):
    def run(self, program: Program) -> None:
        order = list(program.graph.nodes)
        for node in order[1:-1]:  # there and back
            order[-1].prepend(node)
        program.notes.append("idle: left alone")


def test_what_a_pass_left_as_it_was_is_not_verified_again(monkeypatch: pytest.MonkeyPatch):
    found: list[tuple[bool, bool]] = []

    def counted(program: Program, *, full: bool, capped: bool, reading: Any) -> None:
        found.append((full, capped))

    monkeypatch.setattr("zc.pipelines.manager.verify_program", counted)
    run_passes(tiny_program(), pipeline_of(Idle(), Establish(), Idle(), Idle()))
    assert found == [(True, False), (False, False), (True, True)]
