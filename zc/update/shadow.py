"""Calls an optimizer's own ``step`` on stand-ins, leaving the optimizer itself as it is."""

import inspect
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from zc.errors import CaptureError

_TORCH = torch.__file__.removesuffix("__init__.py")
_PLAIN = {"foreach": False, "fused": None, "capturable": False}
_BOOKKEEPING = {"param_groups", "state", "_step_count", "_opt_called"}


class StateEntries(dict[str, Any]):
    """``optimizer.state[param]``, which remembers what each new entry was when it was stored.

    ``number`` makes of a plain number one whose arithmetic is recorded: a counter starts.
    """

    def __init__(self, entries: dict[str, Any], number: Callable[[float], Any]) -> None:
        super().__init__(entries)
        self.first: dict[str, Any] = {}
        self._number = number

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in self:
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                value = self._number(value)
            self.first[key] = value.clone() if isinstance(value, torch.Tensor) else value
        super().__setitem__(key, value)

    def setdefault(self, key: str, default: Any = None) -> Any:
        """As ``dict``; a new entry is remembered."""
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *args: Any, **kwargs: Any) -> None:
        """As ``dict``; new entries are remembered."""
        for key, value in dict(*args, **kwargs).items():
            self[key] = value


def call_step(
    optimizer: torch.optim.Optimizer,
    group: dict[str, Any],
    params: Sequence[torch.Tensor],
    states: Sequence[StateEntries],
) -> None:
    """Run the step of ``optimizer`` as if ``params`` with ``states`` were all it had.

    Args:
        optimizer: whose class's step runs.
        group: the settings of the one parameter group.
        params: with their gradients in ``.grad``.
        states: as many, changed by the step.

    Raises:
        CaptureError: for a step that keeps numbers of its own outside ``optimizer.state``, or that
            needs a closure.
    """
    step = plain_step(optimizer)
    needed = [p for p in list(inspect.signature(step).parameters.values())[1:] if _is_required(p)]
    if needed:
        raise CaptureError(
            f"{type(optimizer).__name__}.step needs '{needed[0].name}', which a compiled step "
            f"cannot give it; call {type(optimizer).__name__}.step outside the compiled function"
        )
    shadow = object.__new__(type(optimizer))
    shadow.__dict__.update(vars(optimizer))
    settings = {key: value for key, value in _PLAIN.items() if key in group}
    shadow.param_groups = [group | settings | {"params": list(params)}]
    entries: dict[Any, Any] = defaultdict(dict)
    entries.update(zip(params, states, strict=True))
    shadow.state = entries
    step(shadow)
    for name, value in vars(shadow).items():
        before = vars(optimizer).get(name)
        if name not in _BOOKKEEPING and value is not before and _is_plain(value):
            raise CaptureError(
                f"{type(optimizer).__name__}.step sets its attribute '{name}'; keep what changes "
                f"between steps in optimizer.state or in param_groups"
            )


def plain_step(optimizer: torch.optim.Optimizer) -> Callable[..., Any]:
    """The step of the optimizer's class without torch's wrappers (hooks, profiling, no_grad)."""
    step: Any = type(optimizer).step
    while hasattr(step, "__wrapped__") and step.__code__.co_filename.startswith(_TORCH):
        step = step.__wrapped__
    return step


def _is_required(parameter: inspect.Parameter) -> bool:
    named = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return named and parameter.default is parameter.empty


def _is_plain(value: Any) -> bool:
    return isinstance(value, (int, float, torch.Tensor, torch.SymFloat))
