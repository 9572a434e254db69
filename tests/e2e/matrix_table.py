"""``tests/MATRIX.md``: the results of the whole matrix, committed for people to read.

Rows are replaced one by one, so that part of the matrix can be run alone.
"""

import math
from collections.abc import Iterable
from pathlib import Path

from e2e.equality import Config, Deviation

PATH = Path(__file__).parents[1] / "MATRIX.md"
_INTRODUCTION = """\
# zc beside DistributedDataParallel

Written by `make test-matrix`. Each cell compares 20 AdamW steps (lr 1e-3, eps 1e-5, fp32) with
DistributedDataParallel in eager mode, from the same weights and batches, once without and once with
`clip_grad_norm_`: the largest relative difference of a loss, then the largest
||delta|| / (1e-5 ||p|| + 1e-2 lr sqrt(numel)) of a parameter or buffer, where 1 is the bound.
`0` means equal bits. L1 compiles the model, L2 the step with `backward()`; norm is the largest
relative difference of a gradient norm over the row.
"""
_COLUMNS = [(stage, level) for stage in range(4) for level in (1, 2)]
_HEADER = ["model", *(f"zero{stage} L{level}" for stage, level in _COLUMNS), "norm"]


def title(config: Config) -> str:
    """The heading of the table that ``config`` belongs to."""
    return f"## {config.world} ranks, {config.executor}"


def row(model: str, found: Iterable[Deviation]) -> str:
    """One line of a table, from all runs of ``model`` in one world with one executor."""
    found = list(found)
    cells = [model]
    for stage, level in _COLUMNS:
        mine = [d for d in found if (d.config.stage, d.config.level) == (stage, level)]
        cells.append(f"{_worst(d.loss for d in mine)} / {_worst(d.state for d in mine)}")
    cells.append(_worst(d.norm for d in found))
    return "| " + " | ".join(cells) + " |"


def update(rows: dict[tuple[str, str], str], path: Path = PATH) -> None:
    """Replace ``rows``, named by heading and model, in the file at ``path``; keep the others."""
    known = read(path) if path.exists() else {}
    known |= rows
    lines = [_INTRODUCTION]
    for heading in sorted({heading for heading, _ in known}):
        lines += [heading, "", "| " + " | ".join(_HEADER) + " |", "|---" * len(_HEADER) + "|"]
        lines += [text for key, text in sorted(known.items()) if key[0] == heading]
        lines.append("")
    path.write_text("\n".join(lines), encoding="utf-8")


def read(path: Path) -> dict[tuple[str, str], str]:
    """The rows of the file at ``path`` by heading and model."""
    found, heading = {}, ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            heading = line
        elif line.startswith("| ") and not line.startswith("| model"):
            found[heading, line.split("|")[1].strip()] = line
    return found


def _worst(values: Iterable[float]) -> str:
    worst = max(values, default=math.inf)
    return "0" if worst == 0 else f"{worst:.0e}"
