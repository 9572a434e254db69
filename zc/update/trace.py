"""Running an optimizer's own ``step`` on fake tensors, and keeping its arithmetic.

    trace = trace_step(optimizer, group, [Member(...)], fake_mode)

What is traced is the optimizer's Python code, whatever it is; nothing here knows an optimizer by
name. Every way through it that depends on data is traced, and joined by ``zc.update.merge``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.func import functionalize

from zc import torch_private
from zc.errors import CaptureError
from zc.program.updates import NUMBER, Slot
from zc.update.calls import PlainCalls
from zc.update.merge import Results, merge_paths
from zc.update.number import Number, recorded_math
from zc.update.recorder import Branch, Path, Recorder
from zc.update.shadow import StateEntries, call_step

MAX_PATHS = 64
Group = dict[str, Any]


@dataclass(frozen=True)
class Member:
    """One parameter: its type, that of its gradient, and its state, real where the host has it.

    ``state`` has fake tensors for what lives with the parameter, real 0-d tensors and Python
    numbers for what the host knows.
    """

    param: torch.Tensor
    grad: torch.Tensor
    state: dict[str, Any]


@dataclass
class Trace:
    """The outcome: values to write, by slot, and the nodes they come from.

    ``first`` has what each entry of state was when the step stored it for the first time.
    """

    recorder: Recorder
    inputs: dict[Slot, fx.Node] = field(default_factory=dict)
    results: Results = field(default_factory=dict)
    first: Results = field(default_factory=dict)
    conditions: list[Branch] = field(default_factory=list)


def trace_step(
    optimizer: torch.optim.Optimizer, group: Group, members: Sequence[Member], fake_mode: Any
) -> Trace:
    """Trace ``optimizer.step()`` as if ``members`` were all parameters, in one ``group``.

    Raises:
        CaptureError: for what cannot be traced, naming the optimizer and the reason.
    """
    trace = Trace(Recorder(fake_mode))
    stand_ins = _stand_ins(trace, group, members)
    paths: list[tuple[Path, Results]] = []
    pending: list[list[bool]] = [[]]
    while pending:
        path = trace.recorder.path = Path(wanted=pending.pop())
        paths.append((path, _follow(trace, optimizer, group, len(members), stand_ins)))
        trace.conditions += path.conditions
        taken = [branch.taken for branch in path.made]
        pending += [[*taken[:i], not taken[i]] for i in range(len(path.wanted), len(taken))]
        if len(paths) + len(pending) > MAX_PATHS:
            raise CaptureError(
                f"{type(optimizer).__name__}.step branches on data in more than {MAX_PATHS} ways, "
                f"at {path.made[-1].where}; write the branch as torch.where"
            )
    trace.results = merge_paths(trace.recorder, paths)
    return trace


def numbers_of(group: Group) -> dict[str, Any]:
    """What a scheduler may change in a parameter group: ``lr``, ``betas[0]``, ..."""
    found = {}
    for key, value in group.items():
        items = enumerate(value) if isinstance(value, tuple) else ()
        for name, item in [(key, value), *((f"{key}[{i}]", item) for i, item in items)]:
            if isinstance(item, float) or (isinstance(item, torch.Tensor) and item.dim() == 0):
                found[name] = item
    return found


def _stand_ins(trace: Trace, group: Group, members: Sequence[Member]) -> dict[Slot, Any]:
    """A placeholder for everything that may change between steps, and what stands for it."""
    values: dict[Slot, Any] = {}
    for index, member in enumerate(members):
        values[Slot("param", "", index)] = member.param
        values[Slot("grad", "", index)] = member.grad
        for key, value in member.state.items():
            if isinstance(value, (torch.Tensor, int, float)) and not isinstance(value, bool):
                values[Slot(_role(value), key, index)] = value  # type: ignore[arg-type]
    values |= {Slot("group", key): value for key, value in numbers_of(group).items()}
    return {slot: _stand_in(trace, slot, value) for slot, value in values.items()}


def _role(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return "counter"
    return "state" if torch_private.is_fake(value) else "shared"


def _stand_in(trace: Trace, slot: Slot, value: Any) -> Any:
    recorder, name = trace.recorder, input_name(slot)
    if not isinstance(value, torch.Tensor):
        trace.inputs[slot] = recorder.input(name, NUMBER, value)
        return Number(recorder, trace.inputs[slot])
    known = None if torch_private.is_fake(value) else value.clone()
    fake = value if known is None else like(known, recorder.fake_mode)
    trace.inputs[slot] = recorder.input(name, fake, known)
    return fake


def like(value: torch.Tensor, fake_mode: Any) -> torch.Tensor:
    """A fake tensor of the type of ``value``, of static shape."""
    with fake_mode:
        return torch.empty_strided(
            tuple(value.shape), value.stride(), dtype=value.dtype, device=value.device
        )


def input_name(slot: Slot) -> str:
    """Name of the placeholder for ``slot``: ``exp_avg``, ``lr``, ``betas_0``, ``param``."""
    text = slot.key or slot.role
    name = "_".join(filter(None, "".join(c if c.isalnum() else " " for c in text).split()))
    return f"{name}_of_{slot.member}" if slot.member else name


def _follow(
    trace: Trace,
    optimizer: torch.optim.Optimizer,
    group: Group,
    count: int,
    stand_ins: dict[Slot, Any],
) -> Results:
    """Take one way through the step; the values that it leaves, by slot."""
    left: dict[Slot, Any] = {}
    first: dict[Slot, Any] = {}
    tensors = {s: v for s, v in stand_ins.items() if isinstance(v, torch.Tensor)}

    def number(value: float) -> Number:
        return Number(trace.recorder, trace.recorder.constant(value))

    def run(given: list[torch.Tensor]) -> list[list[torch.Tensor]]:
        values = stand_ins | dict(zip(tensors, given, strict=True))
        params = [values[Slot("param", "", i)] for i in range(count)]
        states = [StateEntries(_entries(values, i), number) for i in range(count)]
        for i, param in enumerate(params):
            param.grad = values[Slot("grad", "", i)]
        call_step(optimizer, _with_numbers(group, values), params, states)
        for i, state in enumerate(states):
            left[Slot("param", "", i)] = params[i]
            left.update(_by_slot(optimizer, state, i))
            first.update(_by_slot(optimizer, state.first, i))
        return [_tensors(left), _tensors(first)]

    with trace.recorder, PlainCalls(), recorded_math(), torch.no_grad():
        returned = functionalize(run, remove="mutations")(list(tensors.values()))
    for values, plain in zip((left, first), returned, strict=True):
        names = [slot for slot, value in values.items() if isinstance(value, torch.Tensor)]
        values.update(zip(names, plain, strict=True))
    results = _settle(trace, left)
    trace.first |= {slot: _before_clone(node) for slot, node in _settle(trace, first).items()}
    return results


def _before_clone(node: fx.Node) -> fx.Node:
    """What an entry of state was: a tensor was cloned when it was stored."""
    tensor = isinstance(node.meta["val"], torch.Tensor)
    return node.all_input_nodes[0] if tensor else node


def _entries(values: dict[Slot, Any], member: int) -> dict[str, Any]:
    kept = ("state", "shared", "counter")
    return {s.key: v for s, v in values.items() if s.role in kept and s.member == member}


def _with_numbers(group: Group, values: dict[Slot, Any]) -> Group:
    numbers = {slot.key: value for slot, value in values.items() if slot.role == "group"}
    changed = {}
    for key, value in group.items():
        if isinstance(value, tuple):
            value = tuple(numbers.get(f"{key}[{i}]", item) for i, item in enumerate(value))
        changed[key] = numbers.get(key, value)
    return changed


def _by_slot(
    optimizer: torch.optim.Optimizer, state: dict[str, Any], member: int
) -> dict[Slot, Any]:
    found = {}
    for key, value in state.items():
        if isinstance(value, (torch.Tensor, torch.SymFloat, int, float)):
            found[Slot("state", key, member)] = value
        elif value is not None:
            raise CaptureError(
                f"{type(optimizer).__name__} keeps a {type(value).__name__} in state['{key}'], "
                f"which zc cannot carry from step to step; keep tensors and numbers there"
            )
    return found


def _tensors(values: dict[Slot, Any]) -> list[torch.Tensor]:
    return [value for value in values.values() if isinstance(value, torch.Tensor)]


def _settle(trace: Trace, values: dict[Slot, Any]) -> Results:
    """Nodes in place of values; the slot says what the host knows of each."""
    settled = {}
    for slot, value in values.items():
        if not isinstance(value, (torch.Tensor, torch.SymFloat)):
            node = trace.recorder.constant(value)
        else:
            node = trace.recorder.node_of(value)
        if slot.role == "state" and node in trace.recorder.known:
            role = "shared" if isinstance(value, torch.Tensor) else "counter"
            slot = Slot(role, slot.key, slot.member)  # type: ignore[arg-type]
        settled[slot] = node
    return settled
