"""A folder of its own for the regions that one test compiles."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch._inductor.config as inductor
from run.region_runs import start_again


@pytest.fixture
def own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing is compiled yet, neither on disk nor in this process."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    start_again(monkeypatch)
    with inductor.patch({"cpp.vec_isa_ok": True}):  # spares four trials of the compiler
        yield
