"""Work of one op, from its type: floating-point operations, bytes read and bytes written.

Matrix products, convolutions and attention are counted by torch's own registry of formulas
(``torch.utils.flop_counter``), one multiplication and one addition each; any other op counts one
operation for each element of its largest operand or result. Views move nothing.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

from zc.program.analysis import reads_no_values
from zc.program.collectives import hint, is_collective, is_wait
from zc.program.nodes import is_view, tensors_of, value_of
from zc.program.sizes import sizes_of

aten: Any = torch.ops.aten
_ATTENTION: dict[Any, Any] = {
    aten._scaled_dot_product_flash_attention_for_cpu: (aten._scaled_dot_product_flash_attention),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        aten._scaled_dot_product_flash_attention_backward
    ),
}
_LOOKUPS = (aten.embedding, aten.gather, aten.index, aten.index_select)


@dataclass(frozen=True)
class Work:
    """What one op does: ``flops``, and bytes ``read`` and ``written``.

    ``matrix`` says that its operations are those of matrix products in ``dtype``, ``attention``
    that they are those of attention.
    """

    flops: int = 0
    read: int = 0
    written: int = 0
    matrix: bool = False
    dtype: str = "float32"
    attention: bool = False

    @property
    def intensity(self) -> float:
        """Operations for each byte moved (Williams et al. 2009, the roofline's x axis)."""
        return self.flops / max(self.read + self.written, 1)


def work_of(node: fx.Node) -> Work:
    """The work of ``node``; collectives, waits, inputs and views do none."""
    if node.op != "call_function" or is_collective(node) or is_wait(node) or is_view(node):
        return Work()
    outputs = tensors_of(node)
    if not outputs and not node.all_input_nodes:
        return Work()
    sources = node.all_input_nodes
    written = sizes_of(node).touched
    read = 0 if reads_no_values(node) else sum([_read_bytes(node, s) for s in sources])
    counted = matrix_flops(node)
    dtype = str((outputs or _operands(node) or [torch.empty(())])[0].dtype).removeprefix("torch.")
    if counted is not None:
        attends = "attention" in str(node.target)
        return Work(counted, read, written, matrix=True, dtype=dtype, attention=attends)
    elements = max([sizes_of(value).elements for value in (node, *sources)])
    return Work(elements, read, written, dtype=dtype)


def matrix_flops(node: fx.Node) -> int | None:
    """Operations by torch's registry of formulas; ``None`` for an op that it does not know."""
    packet = getattr(node.target, "overloadpacket", None)
    formula = flop_registry.get(_ATTENTION.get(packet, packet))
    if formula is None:
        return None
    args, kwargs = map_arg((node.args, node.kwargs), value_of)
    args, kwargs = tree_map(_hinted, (args, kwargs))
    return int(formula(*args, **kwargs, out_val=tree_map(_hinted, value_of(node))))


def _read_bytes(node: fx.Node, source: fx.Node) -> int:
    """Bytes of ``source`` that ``node`` reads: of a table that it looks rows up in, those rows."""
    size = sizes_of(source).touched
    if source is node.args[0] and getattr(node.target, "overloadpacket", None) in _LOOKUPS:
        return min(size, sizes_of(node).touched)
    return size


def _operands(node: fx.Node) -> list[torch.Tensor]:
    return [t for source in node.all_input_nodes for t in tensors_of(source)]


def _hinted(value: Any) -> Any:
    """Symbolic sizes count as those seen at capture."""
    if isinstance(value, torch.Tensor) and not all(isinstance(s, int) for s in value.shape):
        return torch.empty([hint(s) for s in value.shape], dtype=value.dtype, device="meta")
    return hint(value) if isinstance(value, torch.SymInt) else value
