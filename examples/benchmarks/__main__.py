"""All benchmarks, one after the other: ``make bench``, or ``python examples/benchmarks``."""

import subprocess
import sys
from pathlib import Path


def main() -> None:
    folder = Path(__file__).parent
    for name in ("train_step.py", "memory.py", "update.py"):
        print(f"## {name}\n", flush=True)
        subprocess.run([sys.executable, str(folder / name)], check=True)
        print(flush=True)


if __name__ == "__main__":
    main()
