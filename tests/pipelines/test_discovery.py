"""Passes are found by file; a file that is no pass is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from zc.errors import PipelineError
from zc.pipelines.describe import describe_passes
from zc.pipelines.discovery import class_name, pass_class, pass_names, summary_of

TESTS = Path(__file__).parents[1]
HEAD = """\
from dataclasses import dataclass
from zc.program.pass_base import Pass


"""
ONE = "@dataclass(frozen=True)\nclass {}(Pass):\n    def run(self, program): ...\n\n\n"

WRONG = {
    "no_pass": (
        "no_pass",
        HEAD,
        "zc.passes.no_pass must define one pass, class NoPass; it defines none",
    ),
    "two_passes": (
        "two_passes",
        HEAD + ONE.format("TwoPasses") + ONE.format("Other"),
        "zc.passes.two_passes must define one pass, class TwoPasses; it defines TwoPasses, Other",
    ),
    "wrong_class": (
        "wrong_class",
        HEAD + ONE.format("Wrongclass"),
        "zc.passes.wrong_class must define one pass, class WrongClass; it defines Wrongclass",
    ),
    "not_frozen": (
        "not_frozen",
        HEAD + "class NotFrozen(Pass):\n    def run(self, program): ...\n",
        "zc.passes.not_frozen: class NotFrozen must be a frozen dataclass",
    ),
    "bad_name": (
        "lower_2d",
        HEAD + ONE.format("Lower2d"),
        "zc.passes.lower_2d: the name of a pass is words of lower-case letters and digits, each "
        "beginning with a letter, joined by '_'",
    ),
    "bad_option": (
        "bad_option",
        HEAD + ONE.format("BadOption").replace("(Pass):", "(Pass):\n    sizes: list[int]"),
        "zc.passes.bad_option: option 'sizes' has type list[int]; an option is bool, int, float, "
        "str, Bytes, Duration, a Literal, or one of them or None",
    ),
}


@pytest.mark.parametrize("name, text, message", WRONG.values(), ids=WRONG.keys())  # noqa: PT006
def test_a_file_that_is_no_pass_is_refused(other_passes: Path, name: str, text: str, message: str):
    (other_passes / f"{name}.py").write_text(text)
    assert pass_names() == (name,)
    with pytest.raises(PipelineError) as caught:
        pass_class(name)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", pass_names())
def test_file_class_yaml_name_and_test_correspond(name: str):
    cls = pass_class(name)
    assert (cls.__module__, cls.__name__) == (f"zc.passes.{name}", class_name(name))
    assert cls.name.fget(cls.__new__(cls)) == name  # type: ignore[attr-defined]
    assert (TESTS / "passes" / f"test_{name}.py").exists()
    assert summary_of(cls).endswith(".")


@pytest.mark.usefixtures("toy_passes")
def test_passes_are_described(golden: Callable[..., None]):
    golden(describe_passes())
