"""Put the traced arithmetic of the optimizer in place of ``zc.update``, on local shards.

before:  %w_grad: f32[2, 4] = c10d.wait_tensor(%w_grad_scatter)
         -- update --
         %update = zc.update([%w], [%w_grad], 0)
after:   input %sgd_lr: number  {state 'sgd.lr[group 0]'}
         %w_grad: f32[2, 4] = c10d.wait_tensor(%w_grad_scatter)
         -- update --
         %neg: number = neg(%sgd_lr)
         %w_add: f32[2, 4] = aten.add.Tensor(%w, %w_grad, alpha=%neg)
         %w_copy_: f32[2, 4] = aten.copy_(%w, %w_add)

Elementwise arithmetic stays on shards; a reduction sends one number, what needs a whole tensor
gathers it (``zc.program.sharding_rules``). State of a parameter's shape is sharded like the
parameter, other state is whole on every rank. Step counts and numbers of a group are computed once.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import fx
from torch.fx.node import map_arg

from zc.program.edit import Editor, state_input
from zc.program.layout import Layout
from zc.program.nodes import input_of, value_of
from zc.program.overflow import (
    Guard,
    Scaling,
    find_overflow,
    inline_inverse,
    inline_scale,
    move_scale,
)
from zc.program.partition import Local, own, stored, to_storage, to_whole
from zc.program.pass_base import Kind, Pass
from zc.program.program import Program
from zc.program.retype import retype
from zc.program.sharding_rules import Placed, place
from zc.program.stamps import UPDATE
from zc.program.tables import State
from zc.program.updates import Slot, Update, UpdateClass, host_nodes, keep_number
from zc.state.step import UPDATE as MARKER

aten: Any = torch.ops.aten


@dataclass(frozen=True)
class ShardUpdate(Pass):
    """Inline optimizers: ``zc.step`` becomes arithmetic on local shards."""

    kind: ClassVar[Kind] = "required"
    requires: ClassVar[frozenset[str]] = frozenset({"sharded_params"})
    provides: ClassVar[frozenset[str]] = frozenset({"sharded_update"})

    def run(self, program: Program) -> None:
        """Replace every ``zc.update`` by what its optimizer does."""
        for marker in program.graph.find_nodes(op="call_function", target=MARKER):
            work = Inlining(program, marker, program.updates[marker.args[2]])
            scaling = enter_scaling(work)
            shared = [inline_class(work, kind) for kind in work.update.classes]
            for kind, values in zip(work.update.classes, shared, strict=True):
                write_shared(work, kind, values)
            if scaling is not None and work.guard is not None:
                with work.edit_before() as edit:
                    move_scale(edit, scaling, work.guard)
            program.graph.erase_node(marker)


@dataclass
class Inlining:
    """One update being put in place of its ``marker``.

    ``inputs`` has the state placeholders made so far, ``once`` the numbers that all parameters
    share, by op and operands; ``first`` the step count of each family, ``written`` those stored.
    ``guard`` says whether the update is skipped; ``grads`` are the gradients where they are not
    what the marker has.
    """

    program: Program
    marker: fx.Node
    update: Update
    inputs: dict[str, fx.Node] = field(default_factory=dict)
    once: dict[Any, fx.Node] = field(default_factory=dict)
    first: dict[str, fx.Node] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)
    guard: Guard | None = None
    grads: list[fx.Node] | None = None

    @property
    def edit(self) -> Editor:
        """An editor of the program's graph."""
        return Editor(self.program, self.program.graph, made_by="shard_update")

    def operands(self) -> dict[str, tuple[fx.Node, fx.Node]]:
        """Parameter and gradient, by name of the parameter."""
        params: Any = self.marker.args[0]
        pairs = zip(params, self.grads or self.marker.args[1], strict=True)  # type: ignore
        return {input_of(param).subject: (param, grad) for param, grad in pairs}

    @contextmanager
    def edit_before(self) -> Iterator[Editor]:
        """An editor that inserts before the marker."""
        edit = self.edit
        with edit.before(self.marker, phase=UPDATE):
            yield edit

    def input(self, entry: State) -> fx.Node:
        """The placeholder of a state entry, made where there is none yet."""
        if entry.name not in self.inputs:
            behind = next(reversed(self.inputs.values()), None)
            self.inputs[entry.name] = state_input(self.program, entry, behind)
        return self.inputs[entry.name]


def enter_scaling(work: Inlining) -> Scaling | None:
    """The scale of an update that has one; its gradients are unscaled and looked at."""
    grads = list(work.marker.args[1])  # type: ignore[arg-type]
    if work.update.scaler < 0:
        return None
    scaling = Scaling.enter(work.edit, work.update, value_of(grads[0]).device)
    inline_scale(work.edit, work.update, scaling)
    unscaled = inline_inverse(work.edit, work.update, scaling)
    retype(work.program, work.program.graph)  # what expands the scaled loss has its storage
    names = [input_of(param).subject for param in work.marker.args[0]]  # type: ignore
    layouts = [work.program.params[name].layout for name in names]
    edit = work.edit
    if not unscaled:
        work.grads = []
        for name, grad in zip(names, grads, strict=True):
            with edit.before(work.marker, phase=UPDATE, param=name):
                work.grads.append(edit.call(aten.mul.Tensor, grad, scaling.inverse))
    axes = {layout.axis for layout in layouts if not layout.replicated}
    with work.edit_before() as edit:
        work.guard = find_overflow(edit, work.update, unscaled or grads, axes)
    return scaling


def inline_class(work: Inlining, kind: UpdateClass) -> Placed:
    """Inline the body of a class for each of its parameters; returns what these share."""
    operands = work.operands()
    shared = _shared_values(work, kind)
    for members in kind.members:
        _inline_members(work, kind, members, operands, shared)
    return shared


def write_shared(work: Inlining, kind: UpdateClass, shared: Placed) -> None:
    """Store step counts, once for each family and behind everything that reads them."""
    for slot, node in zip(kind.body.writes, kind.body.results(), strict=True):
        if slot.on_host:
            _write_shared(work, kind, slot, shared[node].node)


def _shared_values(work: Inlining, kind: UpdateClass) -> Placed:
    """What the host knows: inputs, and all that the body computes from these alone."""
    body, edit = kind.body, work.edit
    shared: Placed = {}
    with edit.before(work.marker, phase=UPDATE):
        for node, slot in zip(body.placeholders(), body.inputs, strict=True):
            if slot.on_host:
                shared[node] = Local(_host_input(work, edit, kind, slot, value_of(node)))
        for node in host_nodes(body):
            args, kwargs = map_arg((node.args, node.kwargs), lambda n: shared[n].node)
            key = (node.target, repr(args), repr(kwargs))
            if key not in work.once:
                work.once[key] = edit.call(node.target, *args, **kwargs)
            shared[node] = Local(work.once[key])
    return shared


def _host_input(work: Inlining, edit: Editor, kind: UpdateClass, slot: Slot, value: Any) -> fx.Node:
    """The input for a number of the group, or for a step count of the class."""
    entry = _host_entry(work.update, kind, slot, value)
    node = work.input(entry)
    if slot.role != "shared":
        return node
    if entry.name not in work.first:
        work.first[entry.name] = edit.call(aten.select.int, node, 0, 0)
    return work.first[entry.name]


def _host_entry(update: Update, kind: UpdateClass, slot: Slot, value: Any) -> State:
    dtype = value.dtype if isinstance(value, torch.Tensor) else None
    if slot.role == "group":
        return State(update.number_name(slot.key, kind.group), "hyperparameter", (), dtype)
    count = (len(update.family_names(kind)),) if slot.role == "shared" else ()
    return State(update.shared_name(slot.key, kind), "step", count, dtype)


def _write_shared(work: Inlining, kind: UpdateClass, slot: Slot, value: fx.Node) -> None:
    edit = work.edit
    entry = _host_entry(work.update, kind, slot, value_of(value))
    if entry.name in work.written:
        return
    work.written.add(entry.name)
    with edit.before(work.marker, phase=UPDATE):
        old = work.inputs.get(entry.name) if slot.role == "counter" else work.first.get(entry.name)
        if work.guard is not None and old is not None:
            value = work.guard.kept(edit, old, value)
        if slot.role == "counter":
            edit.call(keep_number, value, entry.name)
            return
        every = edit.call(aten.expand.default, value, list(entry.shape))
        edit.call(aten.copy_.default, work.input(entry), every)


def _inline_members(
    work: Inlining,
    kind: UpdateClass,
    members: Sequence[str],
    operands: Mapping[str, tuple[fx.Node, fx.Node]],
    shared: Placed,
) -> None:
    """One application of a body: compute everything, then write."""
    body, edit = kind.body, work.edit
    placed = dict(shared)
    with edit.before(work.marker, phase=UPDATE, param=members[0]):
        for node, slot in zip(body.placeholders(), body.inputs, strict=True):
            if not slot.on_host:
                placed[node] = _own_input(work, edit, slot, members, operands, value_of(node))
        for node in body.graph.nodes:
            if node.op == "call_function" and node not in placed:
                placed[node] = place(edit.call, node, placed)
        writes = [
            (slot, placed[node], value_of(node))
            for slot, node in zip(body.writes, body.results(), strict=True)
            if not slot.on_host
        ]
        results = [_own_result(work, edit, members, *write) for write in writes]
        for (slot, _, value), result in zip(writes, results, strict=True):
            target = operands[members[slot.member]][0]
            if slot.role == "state":
                target = work.input(_own_entry(work, members[slot.member], slot, value))
            if work.guard is not None:
                result = work.guard.kept(edit, target, result)
            edit.call(aten.copy_.default, target, result)


def _own_input(
    work: Inlining,
    edit: Editor,
    slot: Slot,
    members: Sequence[str],
    operands: Mapping[str, tuple[fx.Node, fx.Node]],
    value: torch.Tensor,
) -> Local:
    """The parameter, its gradient or an entry of its state, as it lies on this rank."""
    name = members[slot.member]
    layout = work.program.params[name].layout
    param, grad = operands[name]
    if slot.role == "param":
        return stored(param, layout)
    if slot.role == "grad":
        return stored(_padded(edit, grad, layout), layout)
    node = work.input(_own_entry(work, name, slot, value))
    return stored(node, _layout_of(value, layout))


def _layout_of(value: torch.Tensor, param: Layout) -> Layout:
    """State of the parameter's shape lies like the parameter; other state is whole."""
    same = tuple(value.shape) == param.shape
    return param if same else replace(param, shape=tuple(value.shape), dim=None)


def _own_entry(work: Inlining, name: str, slot: Slot, value: torch.Tensor) -> State:
    layout = _layout_of(value, work.program.params[name].layout)
    entry = work.update.state_name(slot.key, name)
    return State(entry, "optimizer", layout.storage_shape, value.dtype, device=value.device)


def _padded(edit: Editor, grad: fx.Node, layout: Layout) -> fx.Node:
    """A gradient that user code changed has this rank's rows; storage has padding behind them."""
    value = value_of(grad)
    if layout.replicated or tuple(value.shape) == layout.storage_shape:
        return grad
    flat = edit.call(aten.reshape.default, grad, [value.numel()])
    missing = layout.storage_numel - value.numel()
    flat = edit.call(aten.constant_pad_nd.default, flat, [0, missing], 0.0)
    return edit.call(aten.view.default, flat, list(layout.storage_shape))


def _own_result(
    work: Inlining, edit: Editor, members: Sequence[str], slot: Slot, result: Local, value: Any
) -> fx.Node:
    """A result in the form in which it is stored."""
    layout = work.program.params[members[slot.member]].layout
    wanted = _layout_of(value, layout)
    if result.sharded and result.layout == wanted:
        return to_storage(edit.call, result).node
    whole = to_whole(edit.call, result).node
    return own(edit.call, whole, wanted).node
