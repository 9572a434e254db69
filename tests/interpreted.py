"""Scripts that run kernels under ``TRITON_INTERPRET=1``, which Triton reads when it is imported."""

import os
import subprocess
import sys
from pathlib import Path


def interpreted_lines(script: str) -> list[str]:
    """What ``tests/<script>`` prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).parent / script)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
