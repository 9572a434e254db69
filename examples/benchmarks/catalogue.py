"""Which systems there are, what they need, and which of them a run compares."""

import importlib
import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

import systems_zc
import torch
from systems import GPT, SEED, Builder, Config, Trained
from systems_torch import BASELINE

__all__ = ["BASELINE", "apart", "build", "choose", "names"]


@dataclass(frozen=True)
class Family:
    """Systems of one module; ``apart`` where they cannot share a process with the others."""

    module: str
    package: str | None = None
    apart: bool = False

    def builders(self) -> dict[str, Builder]:
        """By name; nothing of the package is imported before one of them is called."""
        return importlib.import_module(self.module).SYSTEMS

    def is_installed(self) -> bool:
        """Whether the package is there."""
        return self.package is None or importlib.util.find_spec(self.package) is not None


FAMILIES = (
    Family("systems_torch"),
    Family("systems_titan", "torchtitan"),
    Family("systems_deepspeed", "deepspeed", apart=True),
)


def names() -> list[str]:
    """All systems, peers first; zc's can be any level and pass pipeline besides."""
    return [name for family in FAMILIES for name in family.builders()] + list(systems_zc.NAMES)


def choose(wanted: Iterable[str]) -> list[str]:
    """``wanted`` with the baseline in front, without those whose package is missing.

    Those are named on standard error, with what installs them.

    Raises:
        ValueError: for a name that no system has.
        PipelineError: for a pass pipeline that cannot be read.
    """
    chosen = [BASELINE]
    for name in dict.fromkeys(wanted):
        family = _family(name)
        if family and not family.is_installed():
            _say_left_out(name, f"needs {family.package}: pip install 'zc[bench]', or make bench")
        elif name != BASELINE:
            chosen.append(name)
    return chosen


def apart(name: str) -> bool:
    """Whether the system needs processes that it shares with the baseline alone."""
    family = _family(name)
    return family is not None and family.apart


def build(name: str, config: Config, executor: str) -> Trained:
    """The system called ``name``; ``executor`` is ``inductor`` or ``interpret``.

    With ``interpret``, what the other systems compile runs node by node as well (``aot_eager``).
    """
    family = _family(name)
    builder = family.builders()[name] if family else systems_zc.builder_of(name)
    assert builder is not None, name  # names are checked before ranks start
    torch.manual_seed(SEED)
    return builder(GPT(config), executor)


def ablated(specs: Iterable[str]) -> list[str]:
    """The systems of some pass pipelines, and one for each pass that can be taken out of the first.

    Of the others, only those passes are taken out that no pipeline before them has.

    Raises:
        PipelineError: for a pass pipeline that cannot be read.
    """
    found, seen = [], set()
    for spec in specs:
        found.append(systems_zc.name_of(2, spec))
        for removed, refusal in systems_zc.ablations(spec):
            name = systems_zc.name_of(2, spec, removed)
            if refusal is not None:
                _say_left_out(name, refusal)
            elif removed not in seen:
                found.append(name)
            seen.add(removed)
    return found


def _family(name: str) -> Family | None:
    """The family of a peer; ``None`` for a system of zc."""
    for family in FAMILIES:
        if name in family.builders():
            return family
    if systems_zc.builder_of(name):
        return None
    close = get_close_matches(name, names(), 1)
    hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(names())}"
    raise ValueError(f"no system named '{name}'; {hint}")


def _say_left_out(name: str, why: str) -> None:
    print(f"left out: {name}: {why}", file=sys.stderr)
