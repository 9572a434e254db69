"""Toy passes in place of the real ones."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zc.passes


@contextmanager
def passes_from(folder: Path) -> Iterator[None]:
    """Inside, ``zc.passes`` is the package in ``folder``."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in sys.modules if n.startswith("zc.passes.")]:
            patch.delitem(sys.modules, name)
        patch.setattr(zc.passes, "__path__", [str(folder)])
        yield
        for name in [n for n in sys.modules if n.startswith("zc.passes.")]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def toy_passes() -> Iterator[None]:
    with passes_from(Path(__file__).parent / "toy_passes"):
        yield


@pytest.fixture
def other_passes(tmp_path: Path) -> Iterator[Path]:
    """An empty folder that is ``zc.passes``, for passes that a test writes itself."""
    with passes_from(tmp_path):
        yield tmp_path
