"""Round what the update writes in bf16 up or down at random, so that small steps count on average.

before:  %w_add: bf16[16] = aten.add.Tensor(%w, %w_grad, alpha=%neg)
         %w_copy: bf16[16] = aten.copy_(%w, %w_add)
after:   %mod: number = mod(%sgd_rounding_step_group_0, 16777216)
         %w_to_copy: f32[16] = aten._to_copy(%w, dtype=f32)
         %w_to_copy_1: f32[16] = aten._to_copy(%w_grad, dtype=f32)
         %w_add_1: f32[16] = aten.add.Tensor(%w_to_copy, %w_to_copy_1, alpha=%neg)
         %w_rounded: bf16[16] = zc.round_stochastic(%w_add_1, %mod, 0, 0, [0, 16, 64, 16], "dp")
         %w_copy: bf16[16] = aten.copy_(%w, %w_rounded)
         %add: number = add(%sgd_rounding_step_group_0, 1.0)
         %keep_number: number = keep_number(%add, "sgd.rounding_step[group 0]")

For training with parameters in bf16 and no master copy: to nearest, a step below half a unit in the
last place (1/512 of the parameter) is lost, however often it is taken (Gupta et al., "Deep Learning
with Limited Numerical Precision", arXiv:1502.02551, section 3). The arithmetic of the update is in
fp32 up to its one rounding, which is off by less than one unit in the last place of bf16 and right
on average. Random bits follow from seed, step and the element's number in the whole parameter, so
results are the same on any number of ranks. Steps are counted in the optimizer's first parameter
group, under ``rounding_step``, which its ``state_dict()`` has. ``torch.distributed.checkpoint``
loads only what is there already: set ``optimizer.param_groups[0]["rounding_step"] = 0.0`` first.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import fx
from zc.codegen.rounding import STEPS

from zc.errors import PipelineError
from zc.program.edit import Editor, erase_dead, state_input
from zc.program.kernels import FUSED_UPDATE
from zc.program.layout import Layout
from zc.program.nodes import input_of, value_of
from zc.program.pass_base import Kind, Pass
from zc.program.printer import print_node
from zc.program.program import Program
from zc.program.rounding import ROUND_STOCHASTIC, place_of
from zc.program.stamps import UPDATE, stamp_of
from zc.program.tables import State
from zc.program.updates import Update, keep_number
from zc.program.widening import widen

aten: Any = torch.ops.aten
BF16 = torch.bfloat16


@dataclass(frozen=True)
class RoundStochastically(Pass):
    """Write parameters and optimizer state in bf16 with stochastic rounding."""

    kind: ClassVar[Kind] = "numeric"
    requires: ClassVar[frozenset[str]] = frozenset({"sharded_update"})
    seed: int = 0
    optimizer_state: bool = True  # state in bf16 too, which has small steps itself

    def run(self, program: Program) -> None:
        """Round at every write of an update; each optimizer counts its own steps.

        Raises:
            PipelineError: behind ``lower_update``, whose kernels round to nearest.
        """
        refuse_kernels(program)
        for update in program.updates:
            entries = entries_of(program, update, self.optimizer_state)
            writes = writes_of(program, entries)
            if not writes:
                continue
            step, first = count_steps(program, update, writes), first_writes(program)
            for name, together in by_parameter(writes).items():
                round_writes(program, together, first[name], entries, (step, self.seed))


@dataclass(frozen=True)
class Entry:
    """A parameter (``number`` 0) or an entry of its state, and how it lies."""

    param: int
    number: int
    layout: Layout


def refuse_kernels(program: Program) -> None:
    """Refuse kernels that write bf16: their rounding can no longer be changed."""
    for node in program.graph.find_nodes(op="call_function", target=FUSED_UPDATE):
        written: Any = node.args[0]
        if any(value_of(target).dtype == BF16 for target in written):
            raise PipelineError(
                f"%{node.name} writes %{written[0].name} from inside a kernel; put "
                f"'round_stochastically' before 'lower_update'\n  {print_node(node, program)}"
            )


def entries_of(program: Program, update: Update, with_state: bool) -> dict[tuple[str, str], Entry]:
    """What an update may round, by kind and subject of its input."""
    found = {}
    for kind in update.classes:
        slots = {**dict(zip(kind.body.inputs, kind.body.placeholders(), strict=True)),
                 **dict(zip(kind.body.writes, kind.body.results(), strict=True))}  # fmt: skip
        keys = sorted({slot.key for slot in slots if slot.role == "state"})
        for members in kind.members:
            for slot, node in slots.items():
                param = program.params[members[slot.member]]
                if slot.role == "param":
                    found["param", param.name] = Entry(param.id, 0, param.layout)
                elif slot.role == "state" and with_state:
                    layout = layout_as(param.layout, tuple(value_of(node).shape))
                    name = update.state_name(slot.key, param.name)
                    found["state", name] = Entry(param.id, 1 + keys.index(slot.key), layout)
    return found


def layout_as(layout: Layout, shape: tuple[int, ...]) -> Layout:
    """How state of ``shape`` lies: like its parameter, or whole where its shape is another."""
    return layout if shape == layout.shape else replace(layout, shape=shape, dim=None)


def writes_of(program: Program, entries: dict[tuple[str, str], Entry]) -> list[fx.Node]:
    """The writes of ``entries`` in bf16, in order."""
    found = []
    for node in program.graph.find_nodes(op="call_function", target=aten.copy_.default):
        target: Any = node.args[0]
        if stamp_of(node).phase != UPDATE or target.op != "placeholder":
            continue
        if value_of(target).dtype == BF16 and _entry_key(target) in entries:
            found.append(node)
    return found


def _entry_key(target: fx.Node) -> tuple[str, str]:
    return input_of(target).kind, input_of(target).subject


def by_parameter(writes: Sequence[fx.Node]) -> dict[str, list[fx.Node]]:
    """The writes of each parameter and its state."""
    found: dict[str, list[fx.Node]] = {}
    for write in writes:
        found.setdefault(stamp_of(write).param, []).append(write)
    return found


def first_writes(program: Program) -> dict[str, fx.Node]:
    """The first write of each parameter's update: what it reads has its value until there."""
    found: dict[str, fx.Node] = {}
    for node in program.graph.find_nodes(op="call_function", target=aten.copy_.default):
        if stamp_of(node).phase == UPDATE:
            found.setdefault(stamp_of(node).param, node)
    return found


def count_steps(program: Program, update: Update, writes: Sequence[fx.Node]) -> fx.Node:
    """The number of this step, which the program keeps; it is the next one behind ``writes``."""
    entry = State(update.rounding_step, "step", (), None)
    steps = state_input(program, entry)
    edit = Editor(program, program.graph, made_by="round_stochastically")
    with edit.before(writes[0], param=""):
        step = edit.call(operator.mod, steps, STEPS)
    with edit.after(writes[-1], param=""):
        edit.call(keep_number, edit.call(operator.add, steps, 1.0), entry.name)
    return step


def round_writes(
    program: Program,
    writes: Sequence[fx.Node],
    first: fx.Node,
    entries: dict[tuple[str, str], Entry],
    key: tuple[fx.Node, int],
) -> None:
    """Compute what one parameter's ``writes`` store in fp32, before ``first``, and round it.

    ``key`` is the number of the step, and the seed.
    """
    edit = Editor(program, program.graph, made_by="round_stochastically")
    old: list[Any] = [write.args[1] for write in writes]
    with edit.before(first, param=stamp_of(first).param, bucket=stamp_of(first).bucket):
        for write, value in zip(writes, widen(edit, old), strict=True):
            target: Any = write.args[0]
            entry = entries[_entry_key(target)]
            where = (place_of(entry.param, entry.layout), entry.layout.axis)
            name = f"{target.name}_rounded"
            how = (*key, entry.number, *where)
            write.args = (target, edit.call(ROUND_STOCHASTIC, value, *how, name=name))
    erase_dead(program.graph, old)
