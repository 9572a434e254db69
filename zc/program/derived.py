"""Types of nodes that passes insert: derived by running the op, once for calls that are alike.

    derivations = derivations_of(program.fake_mode)
    node.meta["val"] = derivations.type_of(node)

Running an op on fake tensors takes some tenths of a millisecond, and a model of many equal layers
gets the same nodes in each. What an op returned is kept as a *recipe*: sizes and strides, and which
operand the result lies in. A call that is alike (``zc.program.alike``) gets new fake tensors made
from the recipe. A recipe is kept only where what is made from it is described as what the op has
returned. The verifier does not rely on recipes: it runs ops.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import fx

from zc import torch_private
from zc.program.alike import Alike, Unlike, described
from zc.program.nodes import tensors_of, value_of
from zc.program.types import derive

_LONGEST = 8  # tensors in a result, and among operands; longer lists are hardly ever alike
_DESCRIBED = "zc_described"  # with a node: its value, who has described it, and as what


@dataclass(frozen=True)
class Item:
    """One tensor of a result: the operand that it is, or how to make it.

    ``within`` is the operand in whose storage it lies, ``None`` where it has one of its own;
    operands are tensors, by number.
    """

    same_as: int | None
    within: int | None
    size: Sequence[int]
    stride: Sequence[int]
    offset: int
    dtype: torch.dtype
    device: torch.device

    def made(self, mode: Any, operands: Sequence[torch.Tensor]) -> torch.Tensor:
        """The tensor, for these operands."""
        if self.same_as is not None:
            return operands[self.same_as]
        within = None if self.within is None else (operands[self.within], self.offset)
        plain = self.size, self.stride, self.dtype, self.device
        return torch_private.fake_strided(mode, *plain, within)


@dataclass(frozen=True)
class Recipe:
    """A result: one tensor, or several in a ``kind`` of list."""

    kind: type | None
    items: tuple[Item, ...]

    def made(self, mode: Any, operands: Sequence[torch.Tensor]) -> Any:
        """The result, for these operands."""
        found = [item.made(mode, operands) for item in self.items]
        return found[0] if self.kind is None else self.kind(found)


class Derivations(Alike):
    """What ops returned under one fake mode."""

    def __init__(self) -> None:
        super().__init__()
        self._recipes: dict[Hashable, Recipe | None] = {}

    def type_of(self, node: fx.Node, mode: Any) -> Any:
        """The type of ``node``, which follows from its op and its operands.

        Raises:
            whatever the op raises for such operands.
        """
        if node.target is getitem:
            items: Any = value_of(node.args[0])  # type: ignore[arg-type]
            if isinstance(items, (tuple, list)):
                return items[node.args[1]]  # type: ignore[index]
        key = self.call(node)
        if key is None:
            return derive(node, mode)
        recipe = self._recipes.get(key)
        if recipe is not None:
            return recipe.made(mode, _operands(node))
        value = derive(node, mode)
        if key not in self._recipes:
            same = self.call(node) == key  # an op may change the type of an operand
            self._recipes[key] = recipe_of(value, _operands(node), mode) if same else None
        return value

    def _value(self, node: fx.Node) -> Hashable:
        value, known = value_of(node), node.meta.get(_DESCRIBED)
        if known is None or known[0] is not value or known[1] is not self:
            known = node.meta[_DESCRIBED] = value, self, self._type(value)
        return known[2]


_by_mode: WeakKeyDictionary[Any, Derivations] = WeakKeyDictionary()


def derivations_of(mode: Any) -> Derivations:
    """What is known of ops under fake mode ``mode``."""
    if mode not in _by_mode:
        _by_mode[mode] = Derivations()
    return _by_mode[mode]


def recipe_of(value: Any, operands: Sequence[torch.Tensor], mode: Any) -> Recipe | None:
    """How to make ``value`` again; ``None`` where that would give anything else."""
    several = type(value) in (tuple, list)
    tensors = list(value) if several else [value]
    if not tensors or not all(map(torch_private.is_fake, tensors)):
        return None
    if max(len(tensors), len(operands)) > _LONGEST:
        return None
    places = {_storage(operand): place for place, operand in reversed([*enumerate(operands)])}
    new = [key for key in map(_storage, tensors) if key not in places]
    if len(set(new)) < len(new):
        return None  # results that share a new storage
    try:
        items = tuple(_item(tensor, operands, places.get(_storage(tensor))) for tensor in tensors)
        recipe = Recipe(type(value) if several else None, items)
        made = recipe.made(mode, operands)
        again = list(made) if several else [made]
        same = list(map(described, tensors)) == list(map(described, again))
    except Unlike:
        return None
    return recipe if same else None


def _item(tensor: torch.Tensor, operands: Sequence[torch.Tensor], within: int | None) -> Item:
    plain = tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())
    same = next((place for place, operand in enumerate(operands) if operand is tensor), None)
    return Item(same, within, *plain, tensor.dtype, tensor.device)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _operands(node: fx.Node) -> list[torch.Tensor]:
    return [tensor for source in node.all_input_nodes for tensor in tensors_of(source)]
