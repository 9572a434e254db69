"""Text that every machine has: the source of Python's standard library, as bytes."""

import sysconfig
from pathlib import Path

import torch

# tests and installed packages differ between machines; the other two are tables and help texts
SKIPPED = {"test", "tests", "site-packages", "dist-packages", "encodings", "pydoc_data"}
HOLD_OUT = 20  # every 20th file is for validation


def load_corpus() -> tuple[torch.Tensor, torch.Tensor]:
    """Training and validation text, ``uint8``; no file has a part in both."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [path.relative_to(root) for path in root.rglob("*.py")]
    files = sorted(path for path in files if SKIPPED.isdisjoint(path.parts))
    held_out = files[HOLD_OUT // 2 :: HOLD_OUT]
    training = sorted(set(files) - set(held_out))
    return _join(root, training), _join(root, held_out)


def draw_batch(
    text: torch.Tensor, rows: int, length: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random passages ``[rows, length]`` and the bytes that follow each of their bytes."""
    starts = torch.randint(len(text) - length, (rows,), generator=generator)
    passages = torch.stack([text[start : start + length + 1] for start in starts]).long()
    return passages[:, :-1].contiguous(), passages[:, 1:].contiguous()


def _join(root: Path, files: list[Path]) -> torch.Tensor:
    text = b"\n".join((root / path).read_bytes() for path in files)
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)
