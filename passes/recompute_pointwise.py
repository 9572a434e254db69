"""Compute cheap values again in backward instead of saving them: pointwise chains, casts, norms.

before:
  %mm: f32[32, 128] = aten.mm(%x, %t)
  %gelu: f32[32, 128] = aten.gelu(%mm)
  -- backward --
  %mm_1: f32[16, 128] = aten.mm(%t_1, %gelu)
  %gelu_backward: f32[32, 128] = aten.gelu_backward(%mm_2, %mm)
after:
  %mm: f32[32, 128] = aten.mm(%x, %t)
  %gelu: f32[32, 128] = aten.gelu(%mm)                           (dies in forward)
  -- backward --
  %gelu_again: f32[32, 128] = aten.gelu(%mm)  {recompute}
  %mm_1: f32[16, 128] = aten.mm(%t_1, %gelu_again)
  %gelu_backward: f32[32, 128] = aten.gelu_backward(%mm_2, %mm)

What is saved and what computed again is a minimum cut over bytes (zc.program.min_cut), as in
torch's partitioner. Copies stand right before their first reader in each turn of backward, and in
the loop of their originals. Layer, group and RMS norms are computed again whole; their means and
deviations, which are small, are saved. Left alone are values of parameters that backward gathers
again (shard_params can keep vectors gathered: ``persist_vectors``), other reductions, products,
what the caller or the program may write to before backward reads it, and values that a loop uses
from before it.

No phase's predicted peak rises, and one falls by a larger share than the step grows, as a rule
(zc.cost.balance): where memory is scarce at other moments, computing again costs time for nothing.
Where the cut would raise a peak (a value newly saved may outlive those that it stands for), or does
not help, only what can be had from values that backward holds anyway is computed again; where that
does no better, nothing is.

Same ops on same values are the same bits, node by node. Compiled in regions, values may round
differently where they are computed again: inside one kernel what is never stored is not rounded to
bf16, and a norm may be summed in another order.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from zc.cost.balance import Balance
from zc.errors import PipelineError
from zc.program.analysis import turns
from zc.program.edit import Editor, erase_dead
from zc.program.loops import loop_by_node
from zc.program.min_cut import computed_again
from zc.program.pass_base import Kind, Pass
from zc.program.program import Program
from zc.program.recompute import copy_chain
from zc.program.saved import Savings
from zc.program.stamps import BACKWARD, stamp_of
from zc.program.types import retype_views
from zc.program.units import Bytes

Replaced = list[tuple[fx.Node, fx.Node, fx.Node]]  # reader, what it read, the copy it reads


@dataclass(frozen=True)
class RecomputePointwise(Pass):
    """Backward computes pointwise chains again where that saves bytes and hardly takes time.

    Drawing random numbers again saves one byte an element and takes several pointwise ops: a
    dropout mask is drawn again only when ``redraw`` says so.
    """

    kind: ClassVar[Kind] = "optional"
    requires: ClassVar[frozenset[str]] = frozenset({"sharded_params"})
    max_ops: int = 8  # ops that may follow each other in what is computed again
    smallest: Bytes = Bytes("16KiB")  # bytes of a value; smaller ones are saved
    redraw: bool = False  # draw the random numbers of masks again

    def __post_init__(self) -> None:
        if self.max_ops < 1:
            raise PipelineError(f"max_ops must be at least 1, not {self.max_ops!r}")

    def run(self, program: Program) -> None:
        """Let backward read copies of its own of what the cut computes again."""
        savings = Savings(program, self.max_ops, self.smallest, self.redraw)
        wanted = savings.wanted()
        edit = Editor(program, program.graph, made_by=self.name)
        balance = Balance(program)
        said = "left alone: backward reads nothing that can be computed again"
        for choices in (savings.choices, savings.only_of_what_is_there()):
            keys = computed_again(choices, wanted)
            again = [n for key, s in savings.stored.items() if key in keys for n in s.members]
            replaced = read_copies(edit, set(again))
            if not replaced:
                continue
            why = balance.raised() or ("" if balance.helps() else balance.why_not())
            if not why:
                erase_dead(program.graph, again)
                said = balance.said(f"values computed again in backward: {len(keys)}")
                break
            put_back(edit, replaced)
            said = f"left alone: computing values again in backward {why}"
        program.notes.append(f"{self.name}: {said}")


def read_copies(edit: Editor, again: set[fx.Node]) -> Replaced:
    """Let each backward reader of ``again`` read a copy, made in its turn and loop."""
    turn, loops = turns(edit.graph), loop_by_node(edit.graph)
    scope, copies = None, {}
    replaced: Replaced = []
    for node in list(edit.graph.nodes):
        if node.op != "call_function" or stamp_of(node).phase != BACKWARD:
            continue
        if scope != (turn[node], loops.get(node)):
            scope, copies = (turn[node], loops.get(node)), {}
        for source in [s for s in node.all_input_nodes if s in again]:
            copy = copy_chain(edit, source, node, again, copies, recompute=True)
            node.replace_input_with(source, copy)
            replaced.append((node, source, copy))
    retype_views(edit.program, edit.graph, {reader for reader, _, _ in replaced})
    return replaced


def put_back(edit: Editor, replaced: Replaced) -> None:
    """Let readers read again what they read before; copies go."""
    for reader, source, copy in replaced:
        reader.replace_input_with(copy, source)
    erase_dead(edit.graph, [copy for _, _, copy in replaced])
    retype_views(edit.program, edit.graph, {reader for reader, _, _ in replaced})
