"""What the caller can tell of a program: when one value may stand in for an equal one.

What is returned must keep a storage of its own, of its own size; and a copy stays a copy when it or
its source is written to.
"""

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import fx

from zc.program.collectives import hint
from zc.program.nodes import tensors_of, value_of
from zc.program.program import Program
from zc.program.stamps import BACKWARD, FORWARD, stamp_of
from zc.program.storages import storages_of, written_operands
from zc.program.types import same_type


@dataclass
class Outside:
    """What the caller sees: values returned, how often each storage is, and storages written to.

    ``saved`` are storages that backward reads after the caller got forward's outputs (level 1).
    ``moved`` says which storage took the place of one that is gone; types know only later, when
    ``retype_views`` has seen the ``readers`` of what is gone.
    """

    returned: set[fx.Node]
    shared: Counter[int]
    inputs: frozenset[int]
    written: frozenset[int]
    saved: frozenset[int]
    moved: dict[int, int] = field(default_factory=dict)
    readers: set[fx.Node] = field(default_factory=set)

    @staticmethod
    def of(program: Program) -> "Outside":
        """What can be seen of ``program`` as it stands."""
        returned = [v for v in program.output_values() if isinstance(v, fx.Node)]
        written = [operand for n in program.graph.nodes for operand in written_operands(n)]
        return Outside(
            set(returned),
            Counter(key for v in returned for key in storages_of(v)),
            frozenset(k for n in program.placeholders() for k in storages_of(n)),
            frozenset(k for n in written for k in storages_of(n)),
            frozenset(k for n in _saved(program) for k in storages_of(n)),
        )

    def may_replace(self, node: fx.Node, simpler: fx.Node) -> bool:
        """Whether the caller cannot tell ``simpler`` from ``node``; tuples go item by item.

        Their values must be equal; this looks at types, storages and writes.
        """
        if not same_type(value_of(node), value_of(simpler)):
            return False
        pairs = zip(tensors_of(node), tensors_of(simpler), strict=True)
        return all(self._may(node, simpler, old, new) for old, new in pairs)

    def _may(self, node: fx.Node, simpler: fx.Node, gone: torch.Tensor, kept: torch.Tensor) -> bool:
        (old, old_size), (new, new_size) = self.storage(gone), self.storage(kept)
        if old == new:
            return node not in self.returned or not (simpler in self.returned or new in self.inputs)
        if {old, new} & self.written:
            return False
        if not self.shared[old]:
            return True
        own = not self.shared[new] and new not in self.inputs and new not in self.saved
        return own and old_size == new_size

    def replace(self, node: fx.Node, simpler: fx.Node) -> None:
        """Note that ``simpler`` takes the place of ``node``, which still has its readers."""
        if node in self.returned:
            self.returned.add(simpler)
        for gone, kept in zip(tensors_of(node), tensors_of(simpler), strict=True):
            if gone.untyped_storage()._cdata != kept.untyped_storage()._cdata:
                self.readers.update(node.users)
            old, new = self.storage(gone)[0], self.storage(kept)[0]
            if old != new:
                self.moved[old] = new
                self.shared[new] += self.shared.pop(old, 0)

    def storage(self, tensor: torch.Tensor) -> tuple[int, int]:
        """The storage that ``tensor`` lies in by now, and the bytes of the one it was made with."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, hint(storage.nbytes())  # type: ignore[arg-type]
        while key in self.moved:
            key = self.moved[key]
        return key, size


def _saved(program: Program) -> list[fx.Node]:
    if program.level != 1:
        return []
    forward = [n for n in program.graph.nodes if stamp_of(n).phase == FORWARD]
    return [n for n in forward if any(stamp_of(user).phase == BACKWARD for user in n.users)]
