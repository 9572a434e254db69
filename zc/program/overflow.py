"""A step that happens only where every gradient is finite, and the loss scale that follows from it.

%found: f32[] = 1 where some gradient on some rank is not finite, else 0
%w_where: f32[4] = aten.where(%skip, %w, %w_add)      instead of %w_add itself
scale, growth_tracker                                 as torch.amp.GradScaler moves them
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import fx

from zc.errors import CaptureError
from zc.program.collectives import C10D, WAIT
from zc.program.edit import Editor, state_input
from zc.program.nodes import value_of
from zc.program.tables import State
from zc.program.updates import Update, choose, is_number, keep_number
from zc.state.scaling import INVERSE_SCALE, SCALE

aten: Any = torch.ops.aten
NUMBERS = ("growth_factor", "backoff_factor", "growth_interval")


@dataclass(frozen=True)
class Scaling:
    """The late-bound scale of one update, on the device of its gradients, and what moves it."""

    scale: fx.Node
    tracker: fx.Node
    numbers: dict[str, fx.Node]
    inverse: fx.Node

    @staticmethod
    def enter(edit: Editor, update: Update, device: torch.device) -> "Scaling":
        """Make the inputs, and ``inverse`` before everything else.

        The inverse is computed as ``GradScaler`` does it.
        """
        program = edit.program
        kept = {"scale": torch.float32, "growth_tracker": torch.int32}
        found = {}
        for key, dtype in kept.items():
            name = update.scaler_name(key)
            found[key] = state_input(program, State(name, "loss_scale", (), dtype, device=device))
        numbers = {}
        for key in NUMBERS:
            entry = State(update.scaler_name(key), "hyperparameter", (), None)
            numbers[key] = state_input(program, entry)
        first = next(node for node in edit.graph.nodes if node.op == "call_function")
        with edit.before(first, phase="forward"):
            wide = edit.call(aten._to_copy.default, found["scale"], dtype=torch.float64)
            inverse = edit.call(aten.reciprocal.default, wide)
            inverse = edit.call(aten._to_copy.default, inverse, dtype=torch.float32)
        return Scaling(found["scale"], found["growth_tracker"], numbers, inverse)


@dataclass(frozen=True)
class Guard:
    """Whether one update is skipped: ``found`` f32[], ``skip`` bool[], ``number`` on the host."""

    found: fx.Node
    skip: fx.Node
    number: fx.Node

    def kept(self, edit: Editor, old: fx.Node, new: fx.Node) -> fx.Node:
        """``new``, or ``old`` where the update is skipped; both tensors or both numbers."""
        if is_number(value_of(new)):
            return edit.call(choose, self.number, old, new)
        if value_of(old).device == value_of(self.skip).device:
            return edit.call(aten.where.self, self.skip, old, new)
        flag = edit.call(aten.scalar_tensor.default, self.number, dtype=torch.float32)
        return edit.call(aten.where.self, edit.call(aten.gt.Scalar, flag, 0), old, new)


def inline_scale(edit: Editor, update: Update, scaling: Scaling) -> None:
    """Replace what scales losses for ``update`` by arithmetic."""
    for node in edit.graph.find_nodes(op="call_function", target=SCALE):
        if node.args[1] == update.scaler:
            with edit.before(node):
                loss, wide = node.args[0], value_of(node).dtype
                if value_of(loss).dtype != wide:  # type: ignore[arg-type]
                    loss = edit.call(aten._to_copy.default, loss, dtype=wide)
                scaled = edit.call(aten.mul.Tensor, loss, scaling.scale)
            node.replace_all_uses_with(scaled)
            edit.graph.erase_node(node)


def inline_inverse(edit: Editor, update: Update, scaling: Scaling) -> list[fx.Node]:
    """Replace what unscales gradients for ``update``; returns these, as they were with the scale.

    Raises:
        CaptureError: where they are unscaled twice.
    """
    handles = (update.scaler, update.handle)
    every = edit.graph.find_nodes(op="call_function", target=INVERSE_SCALE)
    own = [node for node in every if node.args[1:] == handles]
    if len(own) > 1:
        raise CaptureError(
            f"{edit.program.name} calls zc.unscale_ on the same optimizer twice before its step; "
            f"call it once"
        )
    unscaled: list[fx.Node] = []
    for node in own:
        unscaled += [user.args[0] for user in node.users]  # type: ignore[misc]
        node.replace_all_uses_with(scaling.inverse)
        edit.graph.erase_node(node)
    return unscaled


def find_overflow(edit: Editor, update: Update, grads: Sequence[fx.Node], axes: set[str]) -> Guard:
    """Look at all gradients, on all ranks along ``axes``; the executor is told the outcome.

    They have the scale in them still, as ``GradScaler`` looks at them: clipping hides infinities.
    """
    found = _found_here(edit, [grad for grad in grads if value_of(grad).numel()], grads[0])
    for axis in sorted(axes):
        sent = edit.call(C10D.all_reduce.default, found, "max", axis)
        found = edit.call(WAIT, sent)
    skip = edit.call(aten.gt.Scalar, found, 0)
    number = edit.call(aten._local_scalar_dense.default, found)
    edit.call(keep_number, number, update.scaler_name("found_inf"))
    return Guard(found, skip, number)


def _found_here(edit: Editor, grads: Sequence[fx.Node], like: fx.Node) -> fx.Node:
    """1 where some gradient of this rank is not finite, else 0; ``grads`` have elements."""
    if not grads:
        device = value_of(like).device
        return edit.call(aten.zeros.default, [], dtype=torch.float32, device=device)
    norms = edit.call(aten._foreach_norm.Scalar, grads, math.inf)
    largest = [edit.call(getitem, norms, i) for i in range(len(grads))]
    finite = [edit.call(aten.lt.Scalar, x, math.inf) for x in largest]
    every = edit.call(aten.all.default, edit.call(aten.stack.default, finite))
    found = edit.call(aten.logical_not.default, every)
    return edit.call(aten._to_copy.default, found, dtype=torch.float32)


def move_scale(edit: Editor, scaling: Scaling, guard: Guard) -> None:
    """Back off where the update is skipped, grow behind enough that were not.

    As ``aten::_amp_update_scale_``: products are rounded once, a scale that would overflow stays.
    """
    old, numbers = scaling.scale, scaling.numbers
    wide = edit.call(aten._to_copy.default, old, dtype=torch.float64)

    def times(key: str) -> fx.Node:
        product = edit.call(aten.mul.Tensor, wide, numbers[key])
        return edit.call(aten._to_copy.default, product, dtype=torch.float32)

    grown, shrunk = times("growth_factor"), times("backoff_factor")
    count = edit.call(aten.add.Tensor, scaling.tracker, 1)
    due = edit.call(aten.eq.Scalar, count, numbers["growth_interval"])
    fits = edit.call(aten.lt.Scalar, grown, math.inf)
    grows = edit.call(aten.logical_and.default, due, fits)
    scale = edit.call(aten.where.self, grows, grown, old)
    scale = edit.call(aten.where.self, guard.skip, shrunk, scale)
    again = edit.call(aten.logical_or.default, due, guard.skip)
    zero = edit.call(aten.zeros_like.default, count)
    edit.call(aten.copy_.default, old, scale)
    edit.call(aten.copy_.default, scaling.tracker, edit.call(aten.where.self, again, zero, count))
