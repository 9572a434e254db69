"""Keep the cast of each parameter from one step to the next: the update writes both.

before:  input %w: f32[16]  {param 'w' shard=dp:0}
         %w_to_copy: bf16[16] = aten._to_copy(%w, dtype=bf16)
         %w_gather: bf16[64] = c10d.all_gather_into_tensor(%w_to_copy, 4, "dp")
         -- update --
         %w_copy: f32[16] = aten.copy_(%w, %w_add)
after:   input %w: f32[16]  {param 'w' shard=dp:0}
         input %compute_copy_w: bf16[16]  {state 'compute_copy[w]'}
         %w_gather: bf16[64] = c10d.all_gather_into_tensor(%compute_copy_w, 4, "dp")
         -- update --
         %w_copy: f32[16] = aten.copy_(%w, %w_add)
         %w_to_copy: bf16[16] = aten._to_copy(%w_add, dtype=bf16)
         %w_copy_1: bf16[16] = aten.copy_(%compute_copy_w, %w_to_copy)

The parameter at rest is the master copy of mixed precision training (Micikevicius et al., "Mixed
Precision Training", arXiv:1710.03740, section 3.1). Forward no longer reads it, nor does backward
under ZeRO-3, and ``lower_update`` writes the copy in its one pass over memory. The copy costs its
own bytes at rest. A cast that is read behind the update, or returned, stays a cast; so do all where
the model predicts that writing copies takes as long as the casts, as where these are parts of other
passes over memory.

The copy is made anew when something else has written to the parameter, which torch's version
counters tell. Writes through ``param.data`` and collectives of ``torch.distributed`` on the
parameter bypass these: write to ``param`` itself, under ``torch.no_grad()``.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from zc.cost.balance import Balance, rewrite_if_it_helps
from zc.cost.device import Device
from zc.cost.trial import step_of
from zc.program.copying import copy_program, restore
from zc.program.edit import Editor, erase_dead, state_input
from zc.program.nodes import input_of, value_of
from zc.program.pass_base import Kind, Pass
from zc.program.program import Program
from zc.program.retype import retype
from zc.program.sizes import sizes_of
from zc.program.stamps import UPDATE, stamp_of
from zc.program.storages import storages_of
from zc.program.tables import State
from zc.text import show_bytes

aten: Any = torch.ops.aten
COPY = "compute_copy["


@dataclass(frozen=True)
class CastInUpdate(Pass):
    """Write each parameter's copy in its compute dtype where the parameter itself is written."""

    kind: ClassVar[Kind] = "optional"
    requires: ClassVar[frozenset[str]] = frozenset({"sharded_update"})

    def run(self, program: Program) -> None:
        """Replace the casts of every parameter that is updated here, where that helps."""
        saved = copy_program(program)

        def undo() -> None:
            restore(program, saved)

        doing, rewrite = "keeping casts of parameters", lambda: self._kept(program)
        rewrite_if_it_helps(program, self.name, rewrite, undo, doing, CastsAndCopies)

    def _kept(self, program: Program) -> str:
        """Keep casts from step to step; what to say of it."""
        writes, last = writes_of(program), last_readers(program.graph)
        order = {node: index for index, node in enumerate(program.graph.nodes)}
        copy, count = None, 0
        for param in program.placeholders("param"):
            casts = casts_of(param)
            if param not in writes or not casts:
                continue
            readers = [last[key] for cast in casts for key in storages_of(cast) if key in last]
            if all(order[reader] < order[writes[param]] for reader in readers):
                copy = keep_copy(program, param, casts, writes[param], behind=copy)
                count += 1
        retype(program, program.graph)  # views of a cast share the storage of the copy now
        return f"parameters whose casts are kept: {count}" if count else ""


class CastsAndCopies(Balance):
    """What casts take, against what writing their copies takes; bytes at rest are noted only.

    An update is one pass over memory as ``lower_update`` makes it, in which a copy costs the bytes
    that it writes; that there is another node for each before that is none of its cost.
    """

    def seconds_now(self, device: Device) -> float:
        """Seconds of all that is no update, and of writing copies."""
        seconds = step_of(self.program, device).seconds
        others = math.fsum(s for node, s in seconds.items() if stamp_of(node).phase != UPDATE)
        return others + device.memory_seconds(self._copied())

    def why_not(self) -> str:
        """See ``Balance``."""
        longer = "does not shorten forward and backward by more than it lengthens the update"
        return "" if self.is_shorter() else longer

    def said(self, done: str) -> str:
        """See ``Balance``."""
        size, seconds = show_bytes(self._copied()), self.gained()
        return (
            f"{done}, in {size} at rest; casts take {seconds * 1e3:.3f}ms longer than writing them"
        )

    def _copied(self) -> int:
        copies = self.program.placeholders("state")
        return sum(sizes_of(x).nbytes for x in copies if input_of(x).subject.startswith(COPY))


def writes_of(program: Program) -> dict[fx.Node, fx.Node]:
    """The node that updates each parameter."""
    found = {}
    for node in program.graph.find_nodes(op="call_function", target=aten.copy_.default):
        target: Any = node.args[0]
        if stamp_of(node).phase == UPDATE and target.op == "placeholder":
            found[target] = node
    return found


def casts_of(param: fx.Node) -> list[fx.Node]:
    """The casts of ``param`` before its update; none where they differ in dtype."""
    casts = [
        user
        for user in param.users
        if user.target is aten._to_copy.default
        and set(user.kwargs) == {"dtype"}
        and user.kwargs["dtype"] != value_of(param).dtype
        and stamp_of(user).phase != UPDATE
    ]
    return casts if len({cast.kwargs["dtype"] for cast in casts}) == 1 else []


def last_readers(graph: fx.Graph) -> dict[int, fx.Node]:
    """The last node that reads each storage, the output included."""
    return {k: n for n in graph.nodes for source in n.all_input_nodes for k in storages_of(source)}


def keep_copy(
    program: Program, param: fx.Node, casts: list[fx.Node], write: fx.Node, behind: fx.Node | None
) -> fx.Node:
    """Read the copy, an input ``behind`` the last one, in place of ``casts``; write it too."""
    name = input_of(param).subject
    value = value_of(casts[0])
    entry = State(
        f"{COPY}{name}]",
        "cache",
        tuple(value.shape),
        value.dtype,
        checkpoint="rebuild",
        device=value.device,
        param=name,
    )
    copy = state_input(program, entry, behind)
    for cast in casts:
        cast.replace_all_uses_with(copy)
    erase_dead(program.graph, casts)
    edit = Editor(program, program.graph, made_by="cast_in_update")
    with edit.after(write, param=stamp_of(write).param):
        cast = edit.call(aten._to_copy.default, write.args[1], dtype=value.dtype)
        edit.call(aten.copy_.default, copy, cast)
    return copy
