"""What a step frees stays with the process: counted as page faults of a later filling."""

import os
import platform
import subprocess
import sys

import pytest

from zc.run.heap import keep_freed

FILL = """
import resource, torch
from zc.run.heap import keep_freed

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(1 << 20, 20).add_(1)  # 80 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

kept = keep_freed()
first, *_, last = [faults() for _ in range(6)]  # small blocks settle among the first ones
print(kept, first > 1000, last > 1000)
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")


def kept_and_faults(**settings: str) -> str:
    """Whether memory is kept, and whether a first and a last tensor got fresh pages."""
    names = ("GLIBC_TUNABLES", "ZC_KEEP_FREED")
    environment = {k: v for k, v in os.environ.items() if k not in names and "MALLOC" not in k}
    ran = subprocess.run(
        [sys.executable, "-c", FILL],
        env=environment | settings,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return ran.stdout.strip()


@glibc
def test_later_tensors_get_the_memory_of_earlier_ones():
    assert kept_and_faults() == "True True False"


@glibc
def test_switched_off():
    assert kept_and_faults(ZC_KEEP_FREED="0") == "False True True"


@pytest.mark.parametrize(
    ("name", "value"),
    [("GLIBC_TUNABLES", "glibc.malloc.check=0"), ("MALLOC_MMAP_THRESHOLD_", "65536")],
)
def test_settings_of_the_user_are_left_alone(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert keep_freed.__wrapped__() is False
