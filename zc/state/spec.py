"""What zc knows about one parameter at rest, kept on the ``nn.Parameter`` object itself.

An attribute survives ``copy.deepcopy`` and needs no weak reference, which
``torch.utils.swap_tensors`` (and so ``model.to``) would refuse.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Shard

from zc.program.layout import Layout

_SPEC = "_zc_spec"
_REPLACED = "_zc_replaced"


@dataclass(frozen=True)
class ParamSpec:
    """One parameter at rest.

    ``names`` are all its qualified names, the first one being its own and the rest its ties.
    ``compute_dtype`` is the dtype of the full value, ``reduce_dtype`` that of its gradient's
    reduction; ``None`` means the dtype at rest, and that of the full value. ``distributed`` is
    false where there is no process group: the parameter is then an ordinary one.
    """

    names: tuple[str, ...]
    layout: Layout
    compute_dtype: torch.dtype | None = None
    reduce_dtype: torch.dtype | None = None
    distributed: bool = True

    @property
    def name(self) -> str:
        """The qualified name under which the model lists the parameter."""
        return self.names[0]

    @property
    def ties(self) -> tuple[str, ...]:
        """Further names of the same parameter."""
        return self.names[1:]

    def dtypes(self, at_rest: torch.dtype) -> tuple[torch.dtype, torch.dtype]:
        """Compute and reduce dtype of a parameter whose shards are ``at_rest``."""
        if not at_rest.is_floating_point:
            return at_rest, at_rest
        compute = self.compute_dtype or at_rest
        return compute, self.reduce_dtype or compute

    def marker_args(self, at_rest: torch.dtype) -> tuple[Any, ...]:
        """Arguments of ``zc::param`` behind the shard: constants, equal for equal layers."""
        layout = self.layout
        dim = -1 if layout.dim is None else layout.dim
        return (layout.shape, dim, layout.axis, layout.world, *self.dtypes(at_rest))

    def fits(self, param: torch.Tensor) -> bool:
        """Whether ``param`` lies as this spec says, so that it can take the parameter's place."""
        if not self.distributed:
            return not isinstance(param, DTensor) and tuple(param.shape) == self.layout.shape
        return isinstance(param, DTensor) and describe(param) == str(self)

    def __str__(self) -> str:
        layout = self.layout
        return _words(layout.shape, layout.dim, layout.world, layout.axis, self.distributed)


def describe(param: torch.Tensor) -> str:
    """How ``param`` lies, as a spec prints itself: ``[8, 4] cut along dim 0 over dp=2``."""
    shape = tuple(param.shape)
    if not isinstance(param, DTensor) or param.device_mesh.ndim != 1:
        return f"a {type(param).__name__} {list(shape)}"
    mesh, (placement,) = param.device_mesh, param.placements
    axis = (mesh.mesh_dim_names or ("dp",))[0]
    dim = placement.dim if isinstance(placement, Shard) else None
    return _words(shape, dim, mesh.size(), axis, True)


def _words(
    shape: tuple[int, ...], dim: int | None, world: int, axis: str, distributed: bool
) -> str:
    if not distributed:
        return f"a Parameter {list(shape)}"
    how = "replicated" if dim is None else f"cut along dim {dim}"
    return f"a DTensor {list(shape)} {how} over {axis}={world}"


def spec_of(param: torch.Tensor) -> ParamSpec | None:
    """The spec of a parameter that ``zc.shard`` made, ``None`` for any other tensor."""
    return getattr(param, _SPEC, None)


def set_spec(param: torch.Tensor, spec: ParamSpec) -> None:
    """Attach ``spec`` to ``param``."""
    setattr(param, _SPEC, spec)


def mark_replaced(param: torch.Tensor, name: str) -> None:
    """Remember on ``param`` that a sharded parameter called ``name`` stands in its place."""
    setattr(param, _REPLACED, name)


def replaced_name(param: torch.Tensor) -> str | None:
    """The name under which ``param`` was replaced, ``None`` if it never was."""
    return getattr(param, _REPLACED, None)
