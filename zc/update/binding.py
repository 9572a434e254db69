"""Binding an optimizer's state to a program: the same tensors, read and written by both.

Entries of ``optimizer.state`` that have the shape of their parameter become views of padded storage
that lies like the parameter's; step counts of a class become views into one tensor. The optimizer
keeps its ``state`` and its ``state_dict()``; what replaces an entry (``load_state_dict``) is bound
anew.
"""

from collections.abc import Mapping
from typing import Any

import torch

from zc import torch_private
from zc.program.layout import Layout
from zc.program.packing import storage_of
from zc.program.quantized import codes_name, scales_name
from zc.program.tables import Param, Quantized, State
from zc.program.updates import Slot, Update, UpdateClass
from zc.run.late_state import Cell
from zc.state.padding import new_storage
from zc.state.quantized import plain
from zc.update.entries import in_8_bits, is_quantized, local, pointer, stored, whole
from zc.update.first import Initial

Entries = dict[str, Any]


class ClassBinding:
    """The state of the parameters of one class, and the cells through which a loop reads it.

    Args:
        update: the step that the class is part of.
        kind: the class.
        params: the parameters, by name.
        table: the program's parameters.
        initial: what entries start as where there are none, ``None`` when the body makes them.
        pool: step counts of all families, by entry of the state table; shared among classes.
    """

    def __init__(
        self,
        update: Update,
        kind: UpdateClass,
        params: Mapping[str, torch.Tensor],
        table: Mapping[str, Param],
        initial: Mapping[str, Initial] | None,
        pool: dict[str, torch.Tensor],
    ) -> None:
        self._pool = pool
        self._update = update
        self._kind = kind
        self._names = kind.names()
        self._params = [params[name] for name in self._names]
        self._layouts = [table[name].layout for name in self._names]
        self._initial = initial
        self._inputs = _types(kind, of_results=False)
        self._made = {
            k: v for k, v in _types(kind, of_results=True).items() if k not in self._inputs
        }
        self._owned: list[tuple[torch.Tensor, Entries]] = []
        self._held: list[tuple[Entries, str, Any]] = []
        self._before: list[set[str]] = []
        self._versions: dict[str, tuple[torch.Tensor, int]] = {}
        self._pending: list[tuple[Entries, str, Any]] = []
        self._quantized: dict[str, Quantized] = {}
        self.cells: dict[str, Cell] = {}

    def keeps(self, table: Mapping[str, State]) -> None:
        """Learn from the program's table which entries are in 8 bits after all passes."""
        entries = [self._update.state_name(key, n) for key in self._keys() for n in self._names]
        found = {entry: table.get(codes_name(entry)) for entry in entries}
        self._quantized = {e: row.quantized for e, row in found.items() if row and row.quantized}

    def _keys(self) -> list[str]:
        return [k for k, (slot, _) in (self._inputs | self._made).items() if slot.role == "state"]

    def fits(self, state: Mapping[Any, Entries]) -> bool:
        """Whether the entries there are, are those that the body reads (or may be made first)."""
        for key, (slot, value) in self._inputs.items():
            found = [_entry(state, param, key) for param in self._params]
            present = [entry for entry in found if entry is not None]
            if not present and self._initial and key in self._initial:
                continue
            if len(present) != len(found) or not all(_is_like(e, slot, value) for e in present):
                return False
            if slot.on_host and len({float(entry) for entry in present}) > 1:
                return False
        return not any(
            _entry(state, param, key) is not None for key in self._made for param in self._params
        )

    def bind(self, state: Mapping[Any, Entries]) -> None:
        """Put what the loop reads into ``cells``; entries of ``state`` become views of it."""
        self._held, self._versions, self._pending = [], {}, []
        self._before = [set(state.get(param, ())) for param in self._params]
        self._owned = [(param, state[param]) for param in self._params]
        for key, (slot, value) in self._inputs.items():
            if slot.role == "shared":
                self._bind_shared(state, key, value)
            elif slot.role == "counter":
                self._bind_counter(state, key)
            else:
                self._bind_tensors(state, key, value, self._held)
        self._start_unread(state)
        for key, (slot, value) in self._made.items():
            if slot.role == "state":
                self._bind_tensors(state, key, value, self._pending)
            else:
                self._make_shared(state, key, slot, value)

    def unchanged(self, state: Mapping[Any, Entries]) -> bool:
        """Whether nobody has replaced an entry or written to a step count since the last step.

        Never where the body makes entries: it is the first step.
        """
        return (
            not self._made
            and all(state.get(param) is entries for param, entries in self._owned)
            and all(entries.get(key) is value for entries, key, value in self._held)
            and all(tensor._version == version for tensor, version in self._versions.values())
        )

    def finished(self, state: Mapping[Any, Entries], *, skipped: bool = False) -> None:
        """After a step: entries that it made become part of the state, unless it was skipped."""
        if skipped and self._before:
            self._forget_new(state)
        self._before = []
        for entries, key, value in [] if skipped else self._pending:
            entries[key] = value
        self._pending = []
        for key, (tensor, _) in self._versions.items():
            self._versions[key] = (tensor, tensor._version)

    def _forget_new(self, state: Mapping[Any, Entries]) -> None:
        """Entries that ``bind`` made for a first step go again, since it was none."""
        for param, before in zip(self._params, self._before, strict=True):
            for key in state[param].keys() - before:
                del state[param][key]
            if not state[param]:
                del state[param]  # type: ignore[attr-defined]

    def store_number(self, key: str, state: Mapping[Any, Entries], value: float) -> None:
        """A counter has moved: all parameters of the class get it."""
        for param in self._params:
            state[param][key] = value
        self._held = [(e, k, value if k == key else v) for e, k, v in self._held]
        self._cell(self._update.shared_name(key, self._kind)).value = value

    def host_value(self, state: Mapping[Any, Entries], key: str) -> Any:
        """The value of a step count or counter, which all parameters of the class share."""
        entry = _entry(state, self._params[0], key)
        return self._initial[key].type if entry is None and self._initial else entry

    def _start_unread(self, state: Mapping[Any, Entries]) -> None:
        """Make the entries that the optimizer's first step makes and this body does not touch."""
        for key, initial in (self._initial or {}).items():
            if key in self._inputs or key in self._made:
                continue
            rows = zip(self._params, self._layouts, strict=True)
            for param, layout in rows:
                if key in state[param]:
                    continue
                value = initial.type
                if torch_private.is_fake(value):
                    own = layout if tuple(value.shape) == layout.shape else whole(layout, value)
                    storage = new_storage(own, value.dtype, param.device)
                    self._fill(storage, key, param, own)
                    state[param][key] = stored(storage, own, param)
                else:
                    kept = isinstance(value, torch.Tensor)
                    state[param][key] = value.clone() if kept else value

    def _bind_tensors(
        self, state: Mapping[Any, Entries], key: str, value: torch.Tensor, held: list[Any]
    ) -> None:
        rows = zip(self._names, self._params, self._layouts, strict=True)
        for name, param, layout in rows:
            own = layout if tuple(value.shape) == layout.shape else whole(layout, value)
            entries, label = state[param], self._update.state_name(key, name)
            entry = self._bind_tensor(entries.get(key), key, label, value.dtype, param, own)
            if held is self._held:
                entries[key] = entry
            held.append((entries, key, entry))

    def _bind_tensor(
        self,
        entry: Any,
        key: str,
        label: str,
        dtype: torch.dtype,
        param: torch.Tensor,
        own: Layout,
    ) -> torch.Tensor:
        """Let the cell of an entry have its storage; returns the entry, a view of that."""
        how = self._quantized.get(label)
        if how is not None and is_quantized(entry, how, own):
            return self._bind_codes(label, entry)
        storage = self._storage(entry, key, dtype, param, own)
        if how is not None:
            return self._bind_codes(label, in_8_bits(storage, own, how, param, label))
        if entry is None or storage.data_ptr() != pointer(entry):
            entry = stored(storage, own, param)
        self._cell(label).value = storage.detach()
        return entry

    def _storage(
        self, entry: Any, key: str, dtype: torch.dtype, param: torch.Tensor, own: Layout
    ) -> torch.Tensor:
        """Padded storage of an entry, new where there is no entry."""
        if entry is not None:
            return storage_of(plain(local(entry)), own)
        storage = new_storage(own, dtype, param.device)
        self._fill(storage, key, param, own)
        return storage

    def _bind_codes(self, label: str, entry: torch.Tensor) -> torch.Tensor:
        held: Any = local(entry)
        self._cell(codes_name(label)).value = held.codes
        self._cell(scales_name(label)).value = held.scales
        return entry

    def _fill(self, storage: torch.Tensor, key: str, param: torch.Tensor, own: Layout) -> None:
        initial = (self._initial or {}).get(key)
        if initial is None:
            return
        if initial.fill is not None:
            storage.fill_(initial.fill)
        else:
            storage.copy_(storage_of(local(param).detach(), own))

    def _bind_shared(self, state: Mapping[Any, Entries], key: str, value: torch.Tensor) -> None:
        first = torch.as_tensor(self.host_value(state, key)).to(value.dtype)
        self._views(state, key, first.detach(), self._held, now=True)

    def _make_shared(self, state: Mapping[Any, Entries], key: str, slot: Slot, value: Any) -> None:
        if slot.role == "counter":
            return  # the loop stores it
        self._views(state, key, torch.zeros((), dtype=value.dtype), self._pending, now=False)

    def _views(
        self,
        state: Mapping[Any, Entries],
        key: str,
        first: torch.Tensor,
        held: list[Any],
        now: bool,
    ) -> None:
        name = self._update.shared_name(key, self._kind)
        family = self._update.family_names(self._kind)
        every = self._pool.setdefault(name, first.repeat(len(family)))
        start = family.index(self._names[0])
        views = every[start : start + len(self._names)].unbind()
        for param, view in zip(self._params, views, strict=True):
            if now:
                state[param][key] = view
            held.append((state[param], key, view))
        self._versions[key] = (every, every._version)
        self._cell(name).value = every

    def _bind_counter(self, state: Mapping[Any, Entries], key: str) -> None:
        number = self.host_value(state, key)
        for param in self._params:
            state[param][key] = number
            self._held.append((state[param], key, number))
        self._cell(self._update.shared_name(key, self._kind)).value = number

    def _cell(self, name: str) -> Cell:
        return self.cells.setdefault(name, Cell())


def _types(kind: UpdateClass, *, of_results: bool) -> dict[str, tuple[Slot, Any]]:
    """Slot and logical type of each entry of state that the body reads, or writes, by key."""
    body = kind.body
    slots = body.writes if of_results else body.inputs
    nodes = body.results() if of_results else body.placeholders()
    kept = ("state", "shared", "counter")
    return {s.key: (s, n.meta["val"]) for s, n in zip(slots, nodes, strict=True) if s.role in kept}


def _entry(state: Mapping[Any, Entries], param: torch.Tensor, key: str) -> Any:
    return state[param].get(key) if param in state else None


def _is_like(entry: Any, slot: Slot, value: Any) -> bool:
    if slot.role == "counter":
        return isinstance(entry, (int, float)) and not isinstance(entry, bool)
    if not isinstance(entry, torch.Tensor):
        return False
    return tuple(entry.shape) == tuple(value.shape) and entry.dtype == value.dtype
