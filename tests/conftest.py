"""Fixtures of all tests, ``--update-golden``, the Hypothesis profiles and the order of files."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from golden_helper import golden_base, golden_difference
from hypothesis import settings

settings.register_profile("zc", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "zc")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden/")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a ``timeout`` of their own first, the longest before the others.

    Workers take files from the front: where a long one came last, all but one would wait for it.
    """
    longest: dict[Path, float] = defaultdict(float)
    for item in items:
        for mark in item.iter_markers("timeout"):
            longest[item.path] = max(longest[item.path], mark.args[0])
    items.sort(key=lambda item: -longest[item.path])


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Nothing is compiled yet, and random numbers begin anew."""
    torch.compiler.reset()
    torch.manual_seed(0)
    yield
    torch.compiler.reset()


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[..., None]:
    """``golden(text, suffix=".txt")`` fails unless the golden file of this test says ``text``."""
    base = golden_base(request.node.path, request.node.name)

    def check(text: str, suffix: str = ".txt") -> None:
        __tracebackhide__ = True
        path = base.with_name(base.name + suffix)
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        difference = golden_difference(path, text)
        if difference:
            pytest.fail(difference, pytrace=False)

    return check
