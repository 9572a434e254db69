import json
import re
from html.parser import HTMLParser

from debug.programs import GatherAll, LookAround, chain_step

from zc.debug.fold import outline
from zc.debug.html import render
from zc.debug.plot import plot
from zc.debug.report import build_report, describe, memory
from zc.debug.steps import DIFF_LINES, Change, diff_details
from zc.program.mesh import Mesh
from zc.program.program import Program

EVIL = '<script>alert("x")</script>'
_VOID = {"meta", "input", "line", "circle", "path", "br"}


class Balanced(HTMLParser):
    """Fails on a tag that closes no open one; collects ids and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag


def page(name: str = "train.py:12 step", svg: str | None = None) -> str:
    program = chain_step(2, name=name)
    stages = [describe(program, 0, None, changed=True, seconds=0.0)]
    GatherAll().run(program)
    stages.append(describe(program, 1, GatherAll(), changed=True, seconds=0.001))
    stages.append(describe(program, 2, LookAround(), changed=False, seconds=0.0))
    change = Change("01-gather_all", "--- a\n+++ b\n@@ -1 +1 @@\n-%a<b\n+%c&d\n same\n", svg)
    report = build_report(program, stages, f"name: {EVIL}\n")
    return render(report, {1: change}, outline(program))


def test_tags_are_balanced_and_sections_present():
    parser = Balanced()
    parser.feed(page())
    assert parser.open == []
    wanted = ["passes", "memory", "communication", "drawing", "parameters", "pipeline", "curve"]
    assert [name for name in wanted if name not in parser.ids] == []


def test_nothing_is_loaded_from_elsewhere():
    text = page()
    assert not re.search(r"https?://|@import|url\(|\ssrc=|<link", text)
    assert all("/" not in target for target in re.findall(r'href="([^"]*)"', text))


def test_everything_is_escaped():
    text = page(name=EVIL)
    assert EVIL not in text
    assert text.count("&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;") == 3
    assert '<div class="del">-%a&lt;b</div><div class="add">+%c&amp;d</div>' in text


def test_points_of_the_curve_cannot_end_their_script():
    program = chain_step(1)
    node = program.graph.find_nodes(op="call_function", target=next(_targets(program)))[0]
    node.name = "</script>"
    report = build_report(program, [describe(program, 0, None, changed=True, seconds=0.0)], "")
    text = render(report, {}, "")
    (points,) = re.findall(r'id="points">(.*?)</script>', text)
    assert json.loads(points) == report["memory"]["points"]


def test_an_unchanged_pass_says_so():
    assert '<span class="name">look_around</span><span class="badge">optional</span>' in page()
    assert page().count("changed nothing") == 1


def test_a_drawing_is_shown_when_there_is_one():
    text = page(svg='<?xml version="1.0"?>\n<!DOCTYPE svg>\n<svg width="8pt"></svg>')
    assert '<div class="drawing"><svg width="8pt"></svg></div>' in text
    assert '<a href="01-gather_all.svg">' in text


def test_the_outline_stands_in_for_a_drawing():
    assert "  layers.0: 4 nodes; 1 all_gather, 256 B; reads 1 param, 64 B; reads 1 user" in page()


def test_a_long_diff_is_cut_and_its_file_named():
    diff = "--- a\n+++ b\n" + "+x\n" * (DIFF_LINES + 2000)
    text = diff_details(Change("01-shard_params", diff))
    assert text.count('<div class="add">') == DIFF_LINES
    assert '2,000 more lines in <a href="01-shard_params.diff">01-shard_params.diff</a>' in text


def test_curve(golden):
    program = chain_step(1)
    GatherAll().run(program)
    golden(plot(memory(program)) + "\n", ".svg")


def test_the_curve_of_nothing_is_a_sentence():
    empty = memory(Program("empty", 1, Mesh(), {}, []))
    assert plot(empty) == "<p>This program computes nothing.</p>"


def _targets(program: Program):
    return (n.target for n in program.nodes() if n.op == "call_function")
