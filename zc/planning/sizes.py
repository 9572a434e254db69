"""Sizes that ``zc plan`` knows by name: ``gpt:7.5B`` and bare counts of parameters.

Shapes from 1.7B on are those of Narayanan et al. 2021 (2104.04473), Table 1.
"""

import re
from dataclasses import dataclass

from zc.errors import PipelineError
from zc.pipelines.located import nearest

WORDS = 51_200
_COUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?)([KMBT])")
_UNITS = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


@dataclass(frozen=True)
class GptSize:
    """A GPT: how many layers of what width, over how many words."""

    layers: int
    width: int
    words: int = WORDS

    def symbols(self) -> dict[str, int]:
        """Values of the symbols ``L``, ``d`` and ``V``."""
        return {"L": self.layers, "d": self.width, "V": self.words}


GPT_SIZES = {
    "1B": GptSize(18, 2048),
    "1.7B": GptSize(24, 2304),
    "3.6B": GptSize(30, 3072),
    "7.5B": GptSize(36, 4096),
    "18B": GptSize(40, 6144),
    "39B": GptSize(48, 8192),
    "76B": GptSize(60, 10240),
    "146B": GptSize(80, 12288),
    "310B": GptSize(96, 16384),
    "530B": GptSize(105, 20480),
    "1T": GptSize(128, 25600),
}


def gpt_size(name: str) -> GptSize:
    """The shape called ``name``.

    Raises:
        PipelineError: for a name that is not in the table.
    """
    if name not in GPT_SIZES:
        raise PipelineError(
            f"gpt:{name}: no such size{nearest(name, GPT_SIZES)}; there are {', '.join(GPT_SIZES)}"
        )
    return GPT_SIZES[name]


def parameter_count(text: str) -> int:
    """The number in ``text``: ``7.5B`` is 7,500,000,000.

    Raises:
        PipelineError: for anything else.
    """
    match = _COUNT.fullmatch(text)
    if match is None:
        raise PipelineError(f"params:{text}: not a count of parameters; write 7.5B, 128B or 1T")
    return round(float(match[1]) * _UNITS[match[2]])
