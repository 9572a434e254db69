"""Optimizer steps of one compiled function at run time: which trace holds, what it reads.

Before each call the numbers of the parameter groups are read, conditions of the trace checked, and
entries of state that somebody replaced bound anew. Where the trace no longer holds (a setting
changed that is no number, a branch goes the other way, the first step is over), the step is traced
again; traces are kept, so going back to one costs nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from zc import torch_private
from zc.program.nodes import input_of
from zc.program.program import Program
from zc.program.tables import State
from zc.program.updates import ROUNDING_STEP, UpdateClass
from zc.run.late_state import Cell
from zc.state.optimizers import optimizer_of
from zc.state.quantized import keep_checkpoints_plain
from zc.state.scaling import NO_SCALER
from zc.update.binding import ClassBinding
from zc.update.classes import Held, settings_of, structure_of, trace_update
from zc.update.loss_scale import scaler_cells
from zc.update.trace import numbers_of

Cells = dict[str, Any]


@dataclass
class OptimizerStep:
    """One ``zc.step`` of a program: an optimizer and the parameters that it steps there.

    ``places`` has the parameter group of each parameter and its position in it, by name; ``scaler``
    is the handle of the ``GradScaler`` that is asked first.
    """

    handle: int
    grads: dict[str, torch.dtype]
    places: dict[str, tuple[int, int]]
    scaler: int = NO_SCALER

    @staticmethod
    def find(
        handle: int,
        grads: dict[str, torch.dtype],
        parameters: Mapping[str, torch.Tensor],
        scaler: int = NO_SCALER,
    ) -> "OptimizerStep":
        """The step of the optimizer that ``handle`` means, on the parameters named in ``grads``."""
        names = {id(parameters[name]): name for name in grads}
        groups = optimizer_of(handle).param_groups
        places = {
            names[id(param)]: (index, position)
            for index, group in enumerate(groups)
            for position, param in enumerate(group["params"])
            if id(param) in names
        }
        return OptimizerStep(handle, grads, places, scaler)

    def params(self) -> dict[str, torch.Tensor]:
        """The parameters as the optimizer has them now, by name."""
        groups = optimizer_of(self.handle).param_groups
        return {name: groups[i]["params"][k] for name, (i, k) in self.places.items()}


class BoundStep:
    """One trace of one optimizer step, bound to the optimizer's state.

    Args:
        step: which optimizer and parameters.
        name: what the program calls the optimizer.
        program: the logical program, whose table of parameters counts.

    Attributes:
        params: the parameters that it steps, by name.
        update: the trace.
        cells: where a loop reads its state and numbers.
    """

    def __init__(self, step: OptimizerStep, name: str, program: Program) -> None:
        self._optimizer = optimizer_of(step.handle)
        self.params = step.params()
        held = _held(step, self.params, program)
        with torch_private.outside_tracing():
            traced = trace_update(self._optimizer, name, held, program.fake_mode)
        self.update = replace(traced.update, scaler=step.scaler, handle=step.handle)
        groups = sorted({kind.group for kind in self.update.classes})
        self._structure = {g: structure_of(self._optimizer, g) for g in groups}
        self._numbers = {g: sorted(numbers_of(self._settings(g))) for g in groups}
        self._pool: dict[str, torch.Tensor] = {}
        self._classes = [
            ClassBinding(self.update, kind, self.params, program.params, initial, self._pool)
            for kind, initial in zip(self.update.classes, traced.initial, strict=True)
        ]
        self._checks = [_Checks(kind) for kind in self.update.classes if kind.body.conditions]
        self._of = dict(zip(map(id, self.update.classes), self._classes, strict=True))
        self._bound = False
        self._rounds = False
        self.cells: Cells = {
            self.update.number_name(key, group): Cell()
            for group in groups
            for key in self._numbers[group]
        }
        self._skipped = False
        if step.scaler != NO_SCALER:
            device = next(iter(self.params.values())).device
            self.cells |= scaler_cells(step.scaler, self.update, device)

    def keeps(self, table: Mapping[str, State]) -> None:
        """Learn from the program's table, after all passes, which state is in 8 bits."""
        for binding in self._classes:
            binding.keeps(table)
        if any(row.quantized for row in table.values()):
            keep_checkpoints_plain(self._optimizer)

    def adopt(self, program: Program) -> None:
        """Keep what passes have added to ``program``: the count of steps that round."""
        name = self.update.rounding_step
        if name not in program.state:
            return
        self._rounds = True
        self.cells.setdefault(name, Cell())
        keys = self._numbers.setdefault(0, [])
        if ROUNDING_STEP not in keys:
            keys.append(ROUNDING_STEP)

    def holds(self, params: Mapping[str, torch.Tensor]) -> bool:
        """Whether the trace is what the optimizer would do now; reads all numbers."""
        state = self._optimizer.state
        if self._rounds:  # a state dict from elsewhere has no such number
            self._optimizer.param_groups[0].setdefault(ROUNDING_STEP, 0.0)
        if any(params[name] is not param for name, param in self.params.items()):
            return False
        if any(structure_of(self._optimizer, g) != s for g, s in self._structure.items()):
            return False
        if not (self._bound and all(c.unchanged(state) for c in self._classes)):
            if not (all(c.fits(state) for c in self._classes) and self._families_agree()):
                return False
            self._bound = False
        for group, keys in self._numbers.items():
            numbers = numbers_of(self._settings(group))
            if any(key not in numbers for key in keys):
                return False
            for key in keys:
                self.cells[self.update.number_name(key, group)].value = numbers[key]
        return self.broken() is None

    def broken(self) -> str | None:
        """Where a condition of the trace asks for a value it no longer has; ``None`` if nowhere."""
        return next((w for checks in self._checks if (w := checks.broken(self._value))), None)

    def bind(self) -> None:
        """Bind state where it is not bound; a step begins, and nothing has skipped it yet."""
        self._skipped = False
        if self._bound:
            return
        self._pool.clear()
        with torch.no_grad():
            for binding in self._classes:
                binding.bind(self._optimizer.state)
                self.cells |= binding.cells
        self._bound = True

    def store_number(self, name: str, value: float) -> None:
        """Keep the next value of a counter, or whether the scaler skips this step."""
        if name == self.update.scaler_name("found_inf"):
            self._skipped = value != 0
            return
        if name == self.update.rounding_step:
            if self._skipped:  # which is known before
                return
            self._optimizer.param_groups[0][ROUNDING_STEP] = value
            return
        for kind, binding in zip(self.update.classes, self._classes, strict=True):
            for slot in kind.body.writes:
                if slot.role == "counter" and self.update.shared_name(slot.key, kind) == name:
                    binding.store_number(slot.key, self._optimizer.state, value)

    def finished(self) -> None:
        """After a step."""
        for binding in self._classes:
            binding.finished(self._optimizer.state, skipped=self._skipped)
        if self._skipped:
            self._bound = False
        else:
            self._optimizer._opt_called = True  # type: ignore[attr-defined]  # LRScheduler asks

    def _families_agree(self) -> bool:
        """Whether the classes of each family have equal step counts."""
        found: dict[str, set[float]] = {}
        for kind, binding in zip(self.update.classes, self._classes, strict=True):
            for slot in kind.body.inputs:
                if slot.role in ("shared", "counter"):
                    value = float(binding.host_value(self._optimizer.state, slot.key))
                    found.setdefault(self.update.shared_name(slot.key, kind), set()).add(value)
        return all(len(values) == 1 for values in found.values())

    def release(self) -> None:
        """Another trace takes over: bind anew when this one comes back."""
        self._bound = False

    def _settings(self, group: int) -> dict[str, Any]:
        return settings_of(self._optimizer, group)

    def _value(self, kind: UpdateClass, role: str, key: str) -> Any:
        if role == "group":
            return self.cells[self.update.number_name(key, kind.group)].value
        return self._of[id(kind)].host_value(self._optimizer.state, key)


@dataclass
class _Checks:
    """The conditions of one body, as a function of what the host knows."""

    kind: UpdateClass
    run: Callable[..., Any] = field(init=False)

    def __post_init__(self) -> None:
        self.run = fx.GraphModule(torch.nn.Module(), self.kind.body.checks).forward

    def broken(self, value_of: Callable[[UpdateClass, str, str], Any]) -> str | None:
        body = self.kind.body
        found = self.run(*(value_of(self.kind, slot.role, slot.key) for slot in body.checked))
        for condition, value in zip(body.conditions, found, strict=True):
            if bool(value) is not bool(condition.expected):
                return condition.where
        return None


def _held(step: OptimizerStep, params: Mapping[str, torch.Tensor], program: Program) -> list[Held]:
    inputs = {input_of(node).subject: node for node in program.placeholders("param")}
    found = []
    for name, (group, _) in sorted(step.places.items(), key=lambda item: item[1]):
        value, row = inputs[name].meta["val"], program.params[name]
        strides = value.stride() if tuple(value.shape) == row.shape else None
        with program.fake_mode:
            full = torch.empty(row.shape, dtype=row.dtype, device=value.device)
            if strides is not None:
                full = torch.empty_strided(row.shape, strides, dtype=row.dtype, device=value.device)
            grad = torch.empty_like(full, dtype=step.grads[name])
        found.append(Held(name, params[name], group, full, grad))
    return found
