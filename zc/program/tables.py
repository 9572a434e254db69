"""The tables that travel beside the graphs: parameters, state, inputs and outputs.

The table of collectives is derived from the graph, see ``zc.program.collectives``.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from zc.program.layout import Layout

Residence = Literal["device", "host", "file"]
InputKind = Literal["param", "grad", "state", "buffer", "user", "tangent", "symbol", "opaque"]
OutputKind = Literal["user", "grad", "opaque", "none"]


@dataclass(frozen=True)
class Param:
    """One parameter, however often the program reads it.

    ``name`` is its qualified name at capture, ``id`` its stable position in the table. ``dtype``
    is the dtype at rest, ``compute_dtype`` that of the full value, ``reduce_dtype`` that of its
    gradient's reduction. ``managed`` says that ``zc.shard`` converted it. ``layouts`` maps each
    mesh axis to the layout along it. ``ties`` are further names of the same parameter.
    """

    name: str
    id: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    compute_dtype: torch.dtype
    reduce_dtype: torch.dtype
    layouts: dict[str, Layout]
    trainable: bool = True
    managed: bool = True
    ties: tuple[str, ...] = ()
    residence: Residence = "device"

    @property
    def layout(self) -> Layout:
        """The layout along the one axis of a 1-D mesh."""
        (layout,) = self.layouts.values()
        return layout


@dataclass(frozen=True)
class Quantized:
    """How state is kept in 8 bits: elements of a block, whether there is a sign, its own dtype.

    See ``zc.codegen.blockwise``.
    """

    block: int
    signed: bool
    dtype: torch.dtype


@dataclass(frozen=True)
class State:
    """One piece of late-bound state: the executor reads it at each call, Dynamo never sees it.

    ``kind`` says what it is (``seed``, ``optimizer``, ``hyperparameter``, ``step``, ``loss_scale``,
    ``accumulator``, ``error_feedback``, ``cache``), ``checkpoint`` what a checkpoint does with it.
    ``shape`` is what one rank stores. An entry without ``dtype`` is a Python number. ``param`` is
    the parameter that a cache is made from. ``quantized`` says of codes what they stand for
    (``zc.program.quantized``).
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    residence: Residence = "device"
    checkpoint: Literal["save", "rebuild"] = "save"
    device: torch.device = torch.device("cpu")  # noqa: RUF009  (immutable)
    param: str = ""
    quantized: Quantized | None = None


@dataclass(frozen=True)
class Input:
    """What a placeholder is bound to.

    ``subject`` names the parameter of a ``param`` or ``grad`` input, the entry of the state table
    of a ``state`` input, and the source expression of any other. ``index`` is the position among
    the arguments of a call, ``None`` for late-bound state.
    """

    kind: InputKind
    subject: str = ""
    index: int | None = None


@dataclass(frozen=True)
class Output:
    """What becomes of one output: handed to the user, or the gradient of parameter ``subject``."""

    kind: OutputKind
    subject: str = ""
    phase: str = "forward"
