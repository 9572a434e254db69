"""What the optimizer's Python code calls, in a form that can be recorded op by op.

Numbers stay numbers, lists of tensors (``torch._foreach_*``) become one call for each tensor, and
ops that torch's functionalization does not know become what they consist of.
"""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from zc import torch_private
from zc.update.number import Number

_VALUE_LAST = ("addcmul", "addcdiv")


class PlainCalls(TorchFunctionMode):
    """Rewrites calls of torch as they are made."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name.startswith("_foreach_"):
            with self:
                return _one_by_one(name.removeprefix("_foreach_"), args, kwargs)
        if name == "__setitem__" and _fills_where(*args):
            target, mask, value = args
            filling = torch.scalar_tensor(value, dtype=target.dtype, device=target.device)
            return target.copy_(torch.where(mask, filling, target))
        if func in (torch.tensor, torch.as_tensor) and isinstance(args[0], Number):
            kind = {"dtype": torch.get_default_dtype()} | kwargs
            return torch.scalar_tensor(args[0], **kind)
        in_place = name.endswith("_") and not name.startswith("__")
        if in_place and torch_private.is_composite(f"aten::{name}"):
            # functionalize knows no such op; what it consists of, it knows
            return args[0].copy_(getattr(torch.Tensor, name[:-1])(*args, **kwargs))
        result = func(*args, **kwargs)
        return result.node.number if isinstance(result, torch.SymFloat) else result


def _fills_where(target: Any, index: Any, value: Any) -> bool:
    """``x[mask] = number``, which is pointwise though indexing is not."""
    mask = isinstance(index, torch.Tensor) and index.dtype == torch.bool
    number = isinstance(value, (Number, int, float))
    return bool(mask and number and index.shape == target.shape)


def _one_by_one(name: str, args: Any, kwargs: dict[str, Any]) -> list[Any] | None:
    """``torch._foreach_<name>`` as calls of the op itself, which is what it does on CPUs."""
    op = name.rstrip("_")
    function = getattr(torch.Tensor, {"norm_": "norm", "zero": "zero_"}.get(name, name))
    found = []
    for i in range(len(args[0])):
        own = [arg[i] if isinstance(arg, (list, tuple)) else arg for arg in args]
        named = {k: v[i] if isinstance(v, (list, tuple)) else v for k, v in kwargs.items()}
        if op in _VALUE_LAST and len(own) > 3:
            named["value"] = own.pop()
        found.append(function(*own, **named))
    return None if name.endswith("_") else found
