"""Sorting the parameters of an optimizer into classes, each with one traced body.

Parameters are of one class when their step is the same code on the same types: equal shapes and
dtypes, settings of their group that are no numbers, entries of state, and equal values of what the
host keeps of these (step counts).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from zc.errors import CaptureError
from zc.program.updates import Update, UpdateClass
from zc.update.body import body_of, mixes_members
from zc.update.families import in_families
from zc.update.first import Initial, goes_on_alike, initial_state
from zc.update.trace import Group, Member, Trace, like, numbers_of, trace_step


@dataclass(frozen=True)
class Held:
    """One parameter that an optimizer holds and has a gradient for.

    ``full`` and ``grad`` are fake tensors of the whole parameter and of its gradient.
    """

    name: str
    param: torch.Tensor
    group: int
    full: torch.Tensor
    grad: torch.Tensor


@dataclass(frozen=True)
class TracedUpdate:
    """An update, and by class what the state of its parameters starts as where there is none.

    ``None`` in place of these says that the body itself is the first step.
    """

    update: Update
    initial: tuple[dict[str, Initial] | None, ...]


def trace_update(
    optimizer: torch.optim.Optimizer, name: str, held: Sequence[Held], fake_mode: Any
) -> TracedUpdate:
    """Trace one step of ``optimizer`` on ``held``; ``name`` is what the program calls it.

    Raises:
        CaptureError: for a step that cannot be traced, with the optimizer's name and the reason.
    """
    classes: dict[Any, list[Held]] = {}
    for item in held:
        classes.setdefault(_signature(optimizer, item), []).append(item)
    found, initials, heads = [], [], []
    for index, items in enumerate(classes.values()):
        trace, initial = _trace_class(optimizer, items[:1] * 2, fake_mode)
        count = 1
        if mixes_members(trace):
            if len({item.group for item in held}) > 1:
                raise CaptureError(
                    f"{type(optimizer).__name__}.step mixes parameters of several groups; give it "
                    f"one parameter group"
                )
            items, count = list(held), len(held)
            trace, initial = _trace_class(optimizer, items, fake_mode)
        body = body_of(trace, f"{name}_{index}", count)
        names = [item.name for item in items]
        members = tuple(tuple(names[i : i + count]) for i in range(0, len(names), count))
        found.append(UpdateClass(body, members, items[0].group))
        initials.append(initial)
        heads.append(items[0])
        if count > 1:
            break
    pairs = zip(heads, initials, strict=True)
    kinds = in_families(found, [_host_values(optimizer, *pair) for pair in pairs])
    return TracedUpdate(Update(name, kinds), tuple(initials))


def _host_values(
    optimizer: torch.optim.Optimizer, head: Held, initial: dict[str, Initial] | None
) -> dict[str, str]:
    """What the host keeps of a parameter now, or will when its first step begins."""
    begun = {k: v.type for k, v in (initial or {}).items()}
    values = begun | _state_of(optimizer, head)
    plain = {k: v for k, v in values.items() if not isinstance(v, torch.Tensor) or _on_host(v)}
    return {k: repr(v.item() if isinstance(v, torch.Tensor) else v) for k, v in plain.items()}


def _trace_class(
    optimizer: torch.optim.Optimizer, items: Sequence[Held], fake_mode: Any
) -> tuple[Trace, dict[str, Initial] | None]:
    group = settings_of(optimizer, items[0].group)
    trace = _trace(optimizer, group, items, [_state_of(optimizer, i) for i in items], fake_mode)
    if not trace.first:
        return trace, {}
    initial = initial_state(trace)
    if initial is None:
        return trace, None
    begun = [_state_of(optimizer, i) | {k: v.type for k, v in initial.items()} for i in items]
    later = _trace(optimizer, group, items, begun, fake_mode)
    return (later, initial) if goes_on_alike(trace, later) else (trace, None)


def _trace(
    optimizer: torch.optim.Optimizer,
    group: Group,
    items: Sequence[Held],
    states: Sequence[dict[str, Any]],
    fake_mode: Any,
) -> Trace:
    """Trace; a 0-d entry whose next value depends on data is no number the host could keep."""
    data: frozenset[str] = frozenset()
    while True:
        members = [
            Member(like(i.full, fake_mode), like(i.grad, fake_mode), _typed(s, data, fake_mode))
            for i, s in zip(items, states, strict=True)
        ]
        trace = trace_step(optimizer, group, members, fake_mode)
        kept = {s.key for s in trace.inputs if s.role in ("shared", "counter")}
        changed = {s.key for s in trace.results if s.role == "state"} & kept
        if not changed:
            return trace
        data |= changed


def _typed(state: dict[str, Any], data: frozenset[str], fake_mode: Any) -> dict[str, Any]:
    """State as the trace wants it: fakes, each an object of its own, and what the host keeps."""
    typed = {}
    for key, value in state.items():
        if isinstance(value, torch.Tensor) and (key in data or not _on_host(value)):
            value = like(value, fake_mode)
        elif isinstance(value, torch.Tensor):
            value = value.detach().clone()
        elif key in data:
            raise CaptureError(f"the number in state['{key}'] depends on data; keep it as a tensor")
        typed[key] = value
    return typed


def _on_host(value: torch.Tensor) -> bool:
    fake = type(value) is not torch.Tensor
    return value.dim() == 0 and value.device.type == "cpu" and not fake


def settings_of(optimizer: torch.optim.Optimizer, group: int) -> Group:
    """The settings of a parameter group, without its parameters."""
    return {k: v for k, v in optimizer.param_groups[group].items() if k != "params"}


def _state_of(optimizer: torch.optim.Optimizer, item: Held) -> dict[str, Any]:
    return dict(optimizer.state.get(item.param, {}))


def _signature(optimizer: torch.optim.Optimizer, item: Held) -> Any:
    full, grad = item.full, item.grad
    types = (tuple(full.shape), full.stride(), full.dtype, full.device, grad.dtype)
    state = _state_of(optimizer, item)
    return (item.group, types, tuple((k, _kind(v)) for k, v in state.items()))


def _kind(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return repr(value)
    if _on_host(value):
        return (value.dtype, repr(value.item()))
    return (tuple(value.shape), value.dtype, isinstance(value, DTensor))


def structure_of(optimizer: torch.optim.Optimizer, group: int) -> tuple[Any, ...]:
    """What of a group's settings is baked into a trace: all but its numbers."""
    settings = settings_of(optimizer, group)
    numbers = numbers_of(settings)
    plain = {k: v for k, v in settings.items() if k not in numbers}
    return tuple((k, _baked(k, v, numbers)) for k, v in sorted(plain.items()))


def _baked(key: str, value: Any, numbers: dict[str, Any]) -> Any:
    if not isinstance(value, tuple):
        return repr(value)
    return tuple("number" if f"{key}[{i}]" in numbers else repr(v) for i, v in enumerate(value))
