"""The golden fixture, ``--update-golden`` and the Hypothesis profiles."""

import os
from collections.abc import Callable

import pytest
from golden_helper import golden_base, golden_difference
from hypothesis import settings

settings.register_profile("zc", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "zc")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden/")


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
