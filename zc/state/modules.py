"""Modules whose parameters read as full tensors: the class of each is swapped for a subclass.

There is one subclass per class and tuple of parameter names, so that one compiled frame serves all
layers that are alike. ``type(module).__name__`` and ``isinstance`` stay as they were.
"""

import functools
import inspect
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from zc import torch_private
from zc.errors import ShardError
from zc.state.markers import PARAM
from zc.state.padding import is_padded, repad
from zc.state.reading import MARKERS, READING, local_of, read_now
from zc.state.spec import ParamSpec, describe, set_spec, spec_of

SPECS = "_zc_specs"  # per module: parameter name -> ParamSpec


class ShardedModule:
    """What a sharded module does otherwise than its class; stands before that class in the MRO."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if ShardedModule not in cls.__bases__:
            raise ShardError(
                f"'{cls.__name__}' cannot take the place of a class that zc.shard has swapped; "
                f"parametrize or wrap the module before zc.shard"
            )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module; reads of parameters give full tensors meanwhile."""
        before = READING.inside
        READING.inside = True
        try:
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        finally:
            READING.inside = before

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As ``nn.Module.compile``, which compiles nothing where torch skips the forward.

        Raises:
            ShardError: for a module whose forward is torch's own, as ``nn.Sequential``.
        """
        forward = inspect.getsourcefile(type(self).forward) or ""  # type: ignore[attr-defined]
        if forward.startswith(os.path.dirname(nn.__file__)):
            raise ShardError(
                f"{type(self).__name__}.compile() would compile nothing: Dynamo skips code inside "
                f"torch.nn; write model = torch.compile(model, ...) instead"
            )
        super().compile(*args, **kwargs)  # type: ignore[misc]

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As ``nn.Module``; in the place of a sharded parameter only one that lies like it."""
        spec = self.__dict__[SPECS].get(name)
        if spec is not None and param is not None:
            param = _fitting(spec, param)
        super().register_parameter(name, param)  # type: ignore[misc]
        if spec is not None and param is not None:
            _remember(self, name, param)  # type: ignore[arg-type]

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        parameters: dict[str, Any] = self._parameters  # type: ignore[attr-defined]
        kept = {n: dict(vars(p)) for n, p in parameters.items() if p is not None}

        def apply_padded(tensor: torch.Tensor) -> torch.Tensor:
            spec = spec_of(tensor)
            return fn(tensor) if spec is None else repad(fn(tensor), spec.layout)

        result = super()._apply(apply_padded, recurse)  # type: ignore[misc]
        for name, attributes in kept.items():  # swap_tensors has dropped them
            vars(parameters[name]).update(attributes)
            if name in self.__dict__[SPECS]:
                _remember(self, name, parameters[name])  # type: ignore[arg-type]
        return result

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for name, spec in self.__dict__[SPECS].items():
            value = state_dict.get(prefix + name)
            if spec.distributed and type(value) in (torch.Tensor, nn.Parameter):
                raise ShardError(
                    f"'{prefix + name}' is a full tensor in this state dict and a shard in the "
                    f"model; use zc.load_full_state_dict(model, state_dict)"
                )
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]


torch_private.never_compile_alone(ShardedModule.__call__)  # one frame for all would recompile


class ShardedRecurrent:
    """``nn.RNN``, ``nn.LSTM`` and ``nn.GRU`` keep a list of their weights; here it is read anew."""

    @property
    def _flat_weights(self) -> list[torch.Tensor | None]:
        return [getattr(self, name, None) for name in self._flat_weights_names]  # type: ignore

    @_flat_weights.setter
    def _flat_weights(self, weights: list[torch.Tensor | None]) -> None:
        """Ignored: the parameters themselves are what counts."""

    def _init_flat_weights(self) -> None:
        """Nothing is cached."""

    def _update_flat_weights(self) -> None:
        """Nothing is cached."""

    def flatten_parameters(self) -> None:
        """Shards are not one chunk of memory."""


def convert_module(module: nn.Module) -> None:
    """Swap the class of ``module``, whose own parameters carry their specs."""
    own = {name: p for name, p in module._parameters.items() if p is not None}
    module.__dict__[SPECS], module.__dict__[MARKERS] = {}, {}
    for name, param in own.items():
        _remember(module, name, param)
    if isinstance(module, nn.RNNBase):
        module.__dict__.pop("_flat_weights", None)
        module.__dict__["_flat_weight_refs"] = []
    module.__class__ = sharded_class(type(module), tuple(own))  # type: ignore[assignment]


def adopt(module: nn.Module, name: str, param: nn.Parameter) -> None:
    """Put ``param``, made by zc, in the place of ``module``'s parameter ``name``."""
    module._parameters[name] = param
    if SPECS in module.__dict__ and spec_of(param) is not None:
        _remember(module, name, param)


@functools.cache
def sharded_class(cls: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """The subclass of ``cls`` in which ``names`` are read through markers."""
    members: dict[str, Any] = {name: _property(name) for name in names}
    for attribute in ("__module__", "__qualname__", "__doc__"):
        members[attribute] = getattr(cls, attribute)
    bases: tuple[type, ...] = (ShardedModule, cls)
    if issubclass(cls, nn.RNNBase):
        bases = (ShardedRecurrent, *bases)
    metaclass: Any = type(cls)
    return metaclass(cls.__name__, bases, members)


def _property(name: str) -> property:
    def get(self: Any) -> Any:
        param = self._parameters.get(name)
        if param is None:
            return _without_parameter(self, name)
        if torch.compiler.is_compiling():
            return PARAM(local_of(param), *self._zc_markers[name])
        return read_now(self, name, param)  # type: ignore[call-arg]

    def put(self: nn.Module, value: Any) -> None:
        self.__dict__[name] = value

    def delete(self: nn.Module) -> None:
        del self.__dict__[name]

    torch_private.never_compile_alone(get)
    return property(get, put, delete)


def _without_parameter(module: nn.Module, name: str) -> Any:
    if name in module._parameters:
        return None
    if name in module.__dict__:
        return module.__dict__[name]
    raise AttributeError(name)  # nn.Module.__getattr__ looks on, and words the error


def _remember(module: nn.Module, name: str, param: torch.Tensor) -> None:
    spec = spec_of(param)
    assert spec is not None
    module.__dict__[SPECS][name] = spec
    module.__dict__[MARKERS][name] = spec.marker_args(param.dtype)


def _fitting(spec: ParamSpec, param: nn.Parameter) -> nn.Parameter:
    """``param``, which takes the place of one with ``spec``: with that spec, in padded storage."""
    if not spec.fits(param):
        raise ShardError(
            f"'{spec.name}' is {spec} and cannot become {describe(param)}; assign it before "
            f"zc.shard, or copy values in with zc.load_full_state_dict"
        )
    if isinstance(param, DTensor) and not is_padded(param, spec.layout):
        padded = repad(param.detach(), spec.layout)
        param = nn.Parameter(padded, requires_grad=param.requires_grad)
    if spec_of(param) is None:
        set_spec(param, spec)
    return param
