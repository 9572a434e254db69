"""What a pass is: a frozen dataclass whose fields are its options, with one method.

    @dataclass(frozen=True)
    class ShardParams(Pass):
        '''Markers become gathers and reductions.'''

        kind = "required"
        provides = frozenset({"sharded_params"})
        zero_stage: int = 3
        persist_below: Bytes = Bytes(0)  # bytes of a full parameter

        def run(self, program: Program) -> None: ...

The file is ``passes/shard_params.py``, the YAML name ``shard_params``: there is no registry.
"""

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from zc.program.program import Program

Kind = Literal["required", "optional", "numeric"]


@dataclass(frozen=True)
class Pass(ABC):
    """One rewrite of a program.

    ``kind`` says what it may change: a ``required`` pass establishes meaning, an ``optional`` one
    must not change one bit of any result, a ``numeric`` one changes results within a stated
    tolerance. ``requires`` names what earlier passes must have provided, ``provides`` what later
    ones may rely on.
    """

    kind: ClassVar[Kind] = "optional"
    requires: ClassVar[frozenset[str]] = frozenset()
    provides: ClassVar[frozenset[str]] = frozenset()

    @property
    def name(self) -> str:
        """The pass's one name: its class name in snake case."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()

    @abstractmethod
    def run(self, program: Program) -> None:
        """Rewrite ``program`` in place and leave it valid."""
