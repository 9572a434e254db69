"""Where golden files lie and how they are compared; the fixture is in ``conftest.py``."""

import difflib
import re
from pathlib import Path

TESTS = Path(__file__).parent


def golden_base(test_file: Path, test_name: str) -> Path:
    """Where the golden files of one test lie, without suffix."""
    folder = test_file.relative_to(TESTS).with_suffix("")
    return TESTS / "golden" / folder / re.sub(r"[^\w.=-]+", "-", test_name).strip("-")


def golden_difference(path: Path, text: str) -> str:
    """What to tell about ``text`` that should be what ``path`` holds; empty when it is."""
    shown = path.relative_to(TESTS.parent) if path.is_relative_to(TESTS.parent) else path
    if not path.exists():
        return f"{shown} is missing; run pytest --update-golden and read what it wrote"
    expected = path.read_text(encoding="utf-8")
    if text == expected:
        return ""
    lines = difflib.unified_diff(
        expected.splitlines(keepends=True), text.splitlines(keepends=True), str(shown), "now"
    )
    diff = "".join(line if line.endswith("\n") else line + "\n" for line in lines)
    return diff + "if this is meant, run pytest --update-golden"
