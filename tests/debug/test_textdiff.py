import difflib

from debug.programs import GatherAll, chain_step
from hypothesis import given
from hypothesis import strategies as st

from zc.debug.textdiff import diff_texts

lines = st.lists(st.sampled_from("abcdefgh"), max_size=12)


def patch(text: list[str], diff: str) -> list[str]:
    """What ``text`` becomes by ``diff``, which must fit it exactly."""
    result, at = [], 0
    for line in diff.splitlines()[2:]:
        if line.startswith("@@"):
            start, _, length = line.split()[1].removeprefix("-").partition(",")
            begin = int(start) - (0 if length == "0" else 1)
            result += text[at:begin]
            at = begin
            continue
        if line[0] in " -":
            assert text[at] == line[1:]
            at += 1
        if line[0] in " +":
            result.append(line[1:])
    return result + text[at:]


@given(lines, lines)
def test_a_diff_turns_one_text_into_the_other(old: list[str], new: list[str]):
    assert patch(old, diff_texts("\n".join(old), "\n".join(new), "old", "new")) == new


def test_unique_lines_give_the_same_diff_as_difflib():
    old = [f"line {i}" for i in range(40)]
    new = [*old[:5], "more", *old[5:30], *old[32:]]
    expected = "\n".join(difflib.unified_diff(old, new, "old", "new", lineterm="")) + "\n"
    assert diff_texts("\n".join(old), "\n".join(new), "old", "new") == expected


def test_equal_texts_have_no_diff():
    assert diff_texts("a\nb\n", "a\nb\n", "old", "new") == ""


def test_a_pass(golden):
    program = chain_step()
    before = str(program)
    GatherAll().run(program)
    golden(diff_texts(before, str(program), "00-capture.ir", "01-gather_all.ir"), ".diff")
