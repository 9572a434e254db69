"""Make one generated kernel of an optimizer's elementwise arithmetic, for all parameters alike.

before:  -- update --
         %neg: number = neg(%sgd_lr_group_0)
         %w0_add: f32[16] = aten.add.Tensor(%w0, %w0_grad, alpha=%neg)
         %w0_copy: f32[16] = aten.copy_(%w0, %w0_add)
         %w1_add: f32[32] = aten.add.Tensor(%w1, %w1_grad, alpha=%neg)
         %w1_copy: f32[32] = aten.copy_(%w1, %w1_add)
after:   -- update --
         %neg: number = neg(%sgd_lr_group_0)
         %fused_update: none = zc.fused_update([%w0, %w1], [%w0_grad, %w1_grad], [%neg], "sgd_...")

One pass over memory: every shard, gradient and state is read once and written once. What the table
of operations cannot express (``zc.codegen.table``) stays as it is and is read as a value. Results
differ from those of single ops by the rounding of intermediate values: in fp32 a few units in the
last place, in bf16 and fp16 they are rounded once, at the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import fx

from zc.program.analysis import writes_by_storage
from zc.program.edit import Editor, erase_dead
from zc.program.element import Element, element_of
from zc.program.kernels import FUSED_UPDATE, remember
from zc.program.nodes import value_of
from zc.program.pass_base import Kind, Pass
from zc.program.program import Program
from zc.program.quantized import QUANTIZE
from zc.program.stamps import UPDATE, stamp_of

aten: Any = torch.ops.aten
Target = Literal["auto", "triton", "cpu", "eager"]


@dataclass(frozen=True)
class LowerUpdate(Pass):
    """Lower optimizer arithmetic to generated multi-tensor kernels."""

    kind: ClassVar[Kind] = "numeric"
    requires: ClassVar[frozenset[str]] = frozenset({"sharded_update"})
    target: Target = "auto"  # auto: triton on GPUs, cpu elsewhere

    def run(self, program: Program) -> None:
        """Replace the writes of all parameters whose arithmetic is the same by one launch.

        Those in different buckets (``fuse_update``) stay apart.
        """
        launches: dict[Any, list[Element]] = {}
        every = writes_by_parameter(program)
        last = max((write for writes in every for write in writes), default=None)
        changing = {} if last is None else writes_by_storage(program.graph, last)
        for writes in every:
            element = element_of(program, writes, changing)
            if element is not None:
                place = stamp_of(writes[0]).bucket
                launches.setdefault((place, element.key()), []).append(element)
        for elements in launches.values():
            launch(program, elements, self.target)


def writes_by_parameter(program: Program) -> list[list[fx.Node]]:
    """The writes of parameters and their state, parameter by parameter.

    Only those of the parameter's shape: other state is not updated element by element. Only to
    contiguous memory, which is all that kernels write.
    """
    found: dict[str, list[fx.Node]] = {}
    for node in program.graph.nodes:
        stamp = stamp_of(node)
        writes = node.op == "call_function" and node.target in (aten.copy_.default, QUANTIZE)
        if writes and stamp.phase == UPDATE and stamp.param:
            found.setdefault(stamp.param, []).append(node)
    alike = []
    for writes in found.values():
        shape = _written(writes[0]).shape
        alike.append([w for w in writes if _written(w).shape == shape])
    contiguous = [[w for w in writes if _written(w).is_contiguous()] for writes in alike]
    return [writes for writes in contiguous if writes]


def _written(write: fx.Node) -> Any:
    return value_of(write.args[0])  # type: ignore[arg-type]


def launch(program: Program, elements: Sequence[Element], target: str) -> None:
    """One node in place of the writes of ``elements``, behind the last of them."""
    spec, columns = elements[0].spec(), [list(e.ordered()) for e in elements]
    rows = list(zip(*columns, strict=True))
    writes = sum(operand.writes for operand in spec.operands)
    written = [node for row in rows[:writes] for node in row]
    read = [node for row in rows[writes:] for node in row]
    numbers = list(elements[0].numbers)
    last = elements[-1].writes[-1]
    places = [number for e in elements if e.places for number in e.places[0][0]]
    where = (places, elements[0].places[0][1]) if places else ()
    edit = Editor(program, program.graph, made_by="lower_update")
    with edit.after(last, param=""):
        edit.call(FUSED_UPDATE, written, read, numbers, remember(spec), target, *where)
    for element in elements:
        for write in element.writes:
            computed: Any = write.args[1]
            program.graph.erase_node(write)
            erase_dead(program.graph, [computed])
