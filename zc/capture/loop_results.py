"""What a loop over micro-batches leaves behind: sums of gradients and of losses, buffers.

Sums are added up in place, in storage from before the loop, in fp32 or in the dtype of the
reduction where that is wider. A mean weighs each micro-batch by 1/count as it is added.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from zc.capture.markers_merge import ALIASES, EMPTY, fills_fresh
from zc.errors import CaptureError
from zc.program.analysis import ancestors
from zc.program.edit import Editor, erase_dead, node_name
from zc.program.loops import ACCUMULATOR, accumulation_dtype
from zc.program.nodes import input_of, value_of
from zc.program.printer import print_node
from zc.program.program import Program
from zc.program.stamps import BACKWARD, place_of, stamp_of
from zc.program.types import same_type
from zc.state.markers import GRAD

aten: Any = torch.ops.aten
_ADDING = (*ALIASES, aten.copy.default, aten.as_strided.default, aten.add.Tensor)


@dataclass
class Traced:
    """One traced ``zc.microbatches``: its body lies between ``begin`` and ``join``."""

    program: Program
    edit: Editor
    begin: fx.Node
    join: fx.Node

    @property
    def count(self) -> int:
        """How many micro-batches there are."""
        return int(self.join.args[1])  # type: ignore[arg-type]

    @property
    def weight(self) -> dict[str, float]:
        """What one micro-batch counts in a sum, as a keyword of ``add_``."""
        mean = self.join.args[2] == "mean" and self.count > 1
        return {"alpha": 1 / self.count} if mean else {}

    def body(self) -> list[fx.Node]:
        """The nodes of the body, in order."""
        found = []
        node = self.begin.next
        while node is not self.join:
            found.append(node)
            node = node.next
        return found

    def outside(self) -> list[fx.Node]:
        """All nodes in front of the body."""
        nodes = list(self.program.graph.nodes)
        return nodes[: nodes.index(self.begin)]


def sum_gradients(traced: Traced, known: Collection[fx.Node]) -> dict[fx.Node, str]:
    """Add up every gradient of the body; returns the sums and their parameters.

    ``known`` are those of earlier loops.

    Raises:
        CaptureError: where there is none, or the body does more with it than add it to ``.grad``.
    """
    grads = [n for n in traced.body() if n.target is GRAD]
    if not grads:
        raise CaptureError(
            f"the function of zc.microbatches in {traced.program.name} computes no gradient of a "
            f"parameter; call backward() on its loss there"
        )
    _move_behind(traced, grads, known)
    sums = {}
    for grad in grads:
        name = stamp_of(grad).param
        readers = list(grad.users)
        subject = f"{node_name(name)}_grad"
        dtype = accumulation_dtype(grad.args[6])  # type: ignore[arg-type]
        grad.meta["val"] = traced.edit.derive(grad)  # as it lies at rest
        with traced.edit.after(grad, param=name):
            total = _add(traced, grad, dtype, subject)
        with traced.edit.after(traced.join, param=name, phase=BACKWARD):
            total = _cast(traced, total, value_of(grad).dtype)
        sums[_replace(readers, grad, total)] = name
    return sums


def sum_losses(traced: Traced) -> None:
    """Add up what the function returns, behind everything else in the body."""
    losses: Any = traced.join.args[0]
    for position, loss in enumerate(losses):
        dtype = accumulation_dtype(value_of(loss).dtype)
        with traced.edit.before(traced.join, phase=BACKWARD):
            total = _add(traced, loss, dtype, "loss")
        with traced.edit.after(traced.join, phase=BACKWARD):
            whole = not value_of(loss).dtype.is_floating_point
            total = _cast(traced, total, dtype if whole else value_of(loss).dtype)
        for item in [user for user in traced.join.users if user.args[1] == position]:
            item.replace_all_uses_with(total)
            traced.program.graph.erase_node(item)


def refuse_parameter_writes(traced: Traced) -> None:
    """A parameter is written once a step.

    Raises:
        CaptureError: for a parameter that the body writes.
    """
    body = set(traced.body())
    for write in traced.program.graph.find_nodes(op="call_function", target=aten.copy_.default):
        target, value = write.args[:2]
        if value in body and target.op == "placeholder" and input_of(target).kind == "param":
            raise CaptureError(
                f"the function of zc.microbatches writes parameter '{input_of(target).subject}' "
                f"({place_of(write) or 'no source line'}), which would change between "
                f"micro-batches; write it behind zc.microbatches"
            )


def write_buffers(traced: Traced) -> None:
    """Write buffers at each turn, so that the next one reads what this one left.

    Raises:
        CaptureError: for a buffer that was written before, so that the body reads another value.
    """
    body = set(traced.body())
    for write in traced.program.graph.find_nodes(op="call_function", target=aten.copy_.default):
        target, value = write.args[:2]
        if write in body or value not in body or target.op != "placeholder":  # type: ignore
            continue
        _refuse_second_write(traced, write, body)
        traced.join.prepend(write)
        if same_type(value_of(write), value_of(value)):  # type: ignore[arg-type]
            late = [u for u in value.users if u is not write and u not in body]  # type: ignore
            for user in late:
                user.replace_input_with(value, write)  # type: ignore[arg-type]


def _refuse_second_write(traced: Traced, write: fx.Node, body: set[fx.Node]) -> None:
    target: Any = write.args[0]
    for node in sorted(ancestors(write.args[1]) - body):  # type: ignore[arg-type]
        if node is not target and target in ancestors(node):
            raise CaptureError(
                f"{print_node(target)} is written before zc.microbatches "
                f"({place_of(node) or 'no source line'}) and again by its function; call the "
                f"module that writes it in one of the two places"
            )


def _add(traced: Traced, value: fx.Node, dtype: torch.dtype, name: str) -> fx.Node:
    """Add ``value`` at the present place of the editor to a sum that begins before the loop."""
    now = Editor(traced.program, traced.program.graph, "capture")
    tensor = value_of(value)
    with now.before(traced.begin, param=traced.edit.stamp.param):
        where = (list(tensor.shape), dtype, tensor.device)
        start = now.call(ACCUMULATOR, *where, name=f"{name}_sum")
    return traced.edit.call(aten.add_.Tensor, start, value, name=f"{name}_add", **traced.weight)


def _cast(traced: Traced, total: fx.Node, dtype: torch.dtype) -> fx.Node:
    if value_of(total).dtype == dtype:
        return total
    return traced.edit.call(aten._to_copy.default, total, dtype=dtype)


def _replace(readers: list[fx.Node], grad: fx.Node, total: fx.Node) -> fx.Node:
    """Let ``readers`` read the sum, which is fresh: a copy into a new ``.grad`` is not needed."""
    for reader in readers:
        reader.replace_input_with(grad, total)
        if fills_fresh(reader, total):
            reader.replace_all_uses_with(total)
            erase_dead(total.graph, [reader])
    return total


def _move_behind(traced: Traced, grads: list[fx.Node], known: Collection[fx.Node]) -> None:
    """Move what the body does with its gradients, which is adding them up, behind the loop."""
    body = traced.body()
    inside, moved = set(body), dict.fromkeys(grads)
    for node in body:
        if node in moved or not any(source in moved for source in node.all_input_nodes):
            continue
        helpers = [s for s in node.all_input_nodes if s in inside and s not in moved]
        others = [s for s in node.all_input_nodes if s not in moved]
        adds = node.target in _ADDING and all(_is_gradient(s, inside, known) for s in others)
        if not adds:
            name = next(stamp_of(g).param for g in grads if g in ancestors(node))
            raise CaptureError(
                f"{print_node(node)} ({place_of(node) or 'no source line'}) reads the gradient of "
                f"parameter '{name}' inside the function of zc.microbatches, before all "
                f"micro-batches are in it; clip and step behind zc.microbatches"
            )
        moved |= dict.fromkeys([*helpers, node])
    last = traced.join
    for node in body:
        if node in moved and node not in grads:
            last.append(node)
            last = node


def _is_gradient(node: fx.Node, inside: Collection[fx.Node], known: Collection[fx.Node]) -> bool:
    """Whether ``node`` is a gradient from before the loop, or memory for one."""
    if node.target in EMPTY:
        return True
    if node in inside:
        adds = node.target in _ADDING
        return adds and all(_is_gradient(s, inside, known) for s in node.all_input_nodes)
    return any(_began_as_gradient(n, known) for n in ancestors(node))


def _began_as_gradient(node: fx.Node, known: Collection[fx.Node]) -> bool:
    given = node.op == "placeholder" and input_of(node).kind == "grad"
    return given or node in known or node.target is GRAD
