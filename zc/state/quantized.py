"""Optimizer state in 8 bits as users see it: a tensor of numbers that holds codes and scales.

    state = optimizer.state[param]["exp_avg"]     # QuantizedTensor (in a DTensor for a shard)
    state + 1, state.norm(), state.clone()        # plain results, of numbers dequantised meanwhile
    state.zero_(), state.copy_(x), state.mul_(2)  # written as codes and scales
    state[0]                                      # a copy: writing to it changes nothing here

What leaves the optimizer is plain: ``optimizer.state_dict()``, ``torch.save`` and pickles have
dequantised tensors of the same shape and dtype, so checkpoints load anywhere, at any world size. A
plain tensor that ``load_state_dict`` puts in place is quantised before the next compiled step;
quantising what was dequantised gives the same codes and scales.
"""

import weakref
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from zc.codegen.blockwise import dequantize, quantize
from zc.errors import ShardError
from zc.program.tables import Quantized

aten: Any = torch.ops.aten
_ITSELF = (aten.detach.default, aten.alias.default)
_OF_ITS_SHAPE = (aten.view.default, aten._unsafe_view.default)
_plain_in_checkpoints: "weakref.WeakSet[torch.optim.Optimizer]" = weakref.WeakSet()


class QuantizedTensor(torch.Tensor):
    """Numbers of ``shape``, kept as ``codes`` and ``scales``.

    Args:
        codes: u8, at least as many as the numbers; the others are padding behind them.
        scales: one for each block of codes.
        how: what codes stand for.
        shape: of the numbers; that of ``codes`` when left out.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    how: Quantized

    @staticmethod
    def __new__(  # noqa: D102
        cls,
        codes: torch.Tensor,
        scales: torch.Tensor,
        how: Quantized,
        shape: tuple[int, ...] | None = None,
    ) -> "QuantizedTensor":
        size = tuple(codes.shape) if shape is None else shape
        self = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, size, dtype=how.dtype, device=codes.device
        )
        self.codes, self.scales, self.how = codes, scales, how
        return self

    @staticmethod
    def of(
        storage: torch.Tensor, how: Quantized, shape: tuple[int, ...], name: str = "state"
    ) -> "QuantizedTensor":
        """``storage`` quantised, of which numbers of ``shape`` are not padding.

        Raises:
            ShardError: calling it ``name``, for a negative number where there is no sign.
        """
        return QuantizedTensor(*_quantized(storage, how, name), how, shape)

    def storage_numbers(self) -> torch.Tensor:
        """All numbers, padding included, as a plain tensor of the shape of the codes."""
        how = self.how
        return dequantize(self.codes, self.scales, how.block, how.signed).to(how.dtype)

    def dequantize(self) -> torch.Tensor:  # type: ignore[override]
        """The numbers as a plain tensor."""
        return _leading(self.storage_numbers(), tuple(self.shape))

    def assign(self, value: torch.Tensor) -> None:
        """Quantise ``value`` in place; padding becomes zero.

        Raises:
            ShardError: for a negative number where there is no sign.
        """
        storage = torch.zeros_like(self.codes, dtype=self.how.dtype)
        _leading(storage, tuple(self.shape)).copy_(value)
        codes, scales = _quantized(storage, self.how, "state")
        self.codes.copy_(codes)
        self.scales.copy_(scales)

    def like(self, codes: torch.Tensor, scales: torch.Tensor) -> "QuantizedTensor":
        """The same numbers in other memory."""
        return QuantizedTensor(codes, scales, self.how, tuple(self.shape))

    def __repr__(self) -> str:  # type: ignore[override]
        how = self.how
        sign = "signed" if how.signed else "unsigned"
        return f"QuantizedTensor({self.dequantize()!r}, {sign}, block={how.block})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Files have plain tensors."""
        return self.dequantize().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: Any) -> "QuantizedTensor":
        copy = self.clone()
        memo[id(self)] = copy
        return copy  # type: ignore[return-value]

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _ITSELF or (func in _OF_ITS_SHAPE and list(args[0].shape) == list(args[1])):
            return args[0].like(args[0].codes, args[0].scales)
        if func is aten.clone.default:
            return args[0].like(args[0].codes.clone(), args[0].scales.clone())
        if func is aten._to_copy.default and kwargs.get("dtype") in (None, args[0].dtype):
            return _moved(args[0], kwargs)
        return _on_numbers(func, args, kwargs)


def _quantized(
    storage: torch.Tensor, how: Quantized, name: str
) -> tuple[torch.Tensor, torch.Tensor]:
    if not how.signed and bool((storage < 0).any()):
        raise ShardError(
            f"{name} is kept in 8 bits without a sign, since its step makes it 0 or more, but has "
            f"{storage.min().item():g} now; leave it out with the option keys of quantize_moments"
        )
    return quantize(storage, how.block, how.signed)


def _leading(storage: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The numbers of ``shape`` at the beginning of ``storage``."""
    if tuple(storage.shape) == shape:
        return storage
    return storage.as_strided(shape, torch.empty(shape, device="meta").stride())


def _moved(value: QuantizedTensor, options: dict[str, Any]) -> QuantizedTensor:
    """A copy, perhaps on another device."""
    device = options.get("device") or value.device
    codes, scales = (t.to(device, copy=True) for t in (value.codes, value.scales))
    return value.like(codes, scales)


def _on_numbers(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run ``func`` on dequantised operands; those that it writes are quantised again."""
    flat, spec = tree_flatten((args, kwargs))
    plain = {id(x): x.dequantize() for x in flat if isinstance(x, QuantizedTensor)}
    own = {id(plain[id(x)]): x for x in flat if isinstance(x, QuantizedTensor)}
    given, named = tree_unflatten([plain.get(id(x), x) for x in flat], spec)
    result = func(*given, **named)
    for operand in _written(func, args, kwargs):
        operand.assign(plain[id(operand)])
    return tree_map(lambda x: own.get(id(x), x), result)


def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> list[QuantizedTensor]:
    found = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            items = value if isinstance(value, (list, tuple)) else [value]
            found += [item for item in items if isinstance(item, QuantizedTensor)]
    return found


def plain(value: Any) -> Any:
    """``value``, dequantised where it is in 8 bits, on one rank or as a shard."""
    if isinstance(value, QuantizedTensor):
        return value.dequantize()
    if isinstance(value, DTensor) and isinstance(value._local_tensor, QuantizedTensor):
        return DTensor.from_local(
            value._local_tensor.dequantize(), value.device_mesh, value.placements,
            run_check=False, shape=value.shape, stride=value.stride(),
        )  # fmt: skip
    return value


def keep_checkpoints_plain(optimizer: torch.optim.Optimizer) -> None:
    """Let ``optimizer.state_dict()`` have plain tensors from now on."""
    if optimizer not in _plain_in_checkpoints:
        _plain_in_checkpoints.add(optimizer)
        optimizer.register_state_dict_post_hook(_plain_state_dict)


def _plain_state_dict(
    optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]
) -> dict[str, Any]:
    del optimizer
    state = {
        index: {key: plain(value) for key, value in entries.items()}
        for index, entries in state_dict["state"].items()
    }
    return {**state_dict, "state": state}
