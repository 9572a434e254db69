"""The arithmetic of optimizers, as data: one ``Body`` for each class of parameters.

    update adamw_0 {
      input %param: f32[8, 4]
      input %grad: f32[8, 4]
      input %exp_avg: f32[8, 4]
      input %step: f32[]
      input %lr: number
      ...
      write %param, %exp_avg, %step = %addcdiv, %lerp, %add
    }

A body is logical: shapes are those of whole parameters. ``shard_update`` puts it in place of the
marker ``zc::update`` and makes it work on shards.
"""

import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal

import torch
from torch import fx

NUMBER = math.nan  # the type of a number: no program depends on its value
ROUNDING_STEP = "rounding_step"  # in the optimizer's first group: steps with stochastic rounding
Role = Literal["param", "grad", "state", "shared", "counter", "group"]


@dataclass(frozen=True)
class Slot:
    """What a placeholder of a body is bound to.

    ``param`` and ``grad`` are the parameter and its gradient; ``state`` is the tensor
    ``optimizer.state[param][key]``; ``shared`` a 0-d tensor there that the host knows and that is
    the same for all parameters of a class (a step count); ``counter`` a Python number there, with
    the same promise; ``group`` a number of the parameter group, ``key`` being ``lr`` or
    ``betas[0]``. ``member`` tells parameters apart in a body that updates several.
    """

    role: Role
    key: str = ""
    member: int = 0

    @property
    def on_host(self) -> bool:
        """Whether the host knows the value before the step runs."""
        return self.role in ("shared", "counter", "group")


@dataclass(frozen=True)
class Condition:
    """A body holds while ``node`` of ``Body.checks`` gives ``expected``; ``where`` asks for it."""

    node: fx.Node
    expected: Any
    where: str


@dataclass(frozen=True)
class Body:
    """The traced step of one class of parameters.

    Attributes:
        name: unique in the program.
        graph: from ``inputs`` to the values of ``writes``, in order.
        inputs: what each placeholder of ``graph`` is.
        writes: what each value that ``graph`` returns is written to.
        checks: a graph on values that the host knows; its nodes are those of the conditions.
        checked: what each placeholder of ``checks`` is.
        conditions: what must hold for the body to be the optimizer's step.
    """

    name: str
    graph: fx.Graph
    inputs: tuple[Slot, ...]
    writes: tuple[Slot, ...]
    checks: fx.Graph
    checked: tuple[Slot, ...] = ()
    conditions: tuple[Condition, ...] = ()

    def placeholders(self) -> list[fx.Node]:
        """The placeholders of ``graph``, one for each of ``inputs``."""
        return list(self.graph.find_nodes(op="placeholder"))

    def results(self) -> list[fx.Node]:
        """The nodes whose values are written, in the order of ``writes``."""
        (output,) = self.graph.find_nodes(op="output")
        return list(output.args[0])  # type: ignore[arg-type]


@dataclass(frozen=True)
class UpdateClass:
    """Parameters that one body updates.

    ``members`` are the names of those that it takes at once, one tuple for each application;
    ``group`` is the index of their parameter group. Classes of one ``family`` have the same step
    counts and move them alike.
    """

    body: Body
    members: tuple[tuple[str, ...], ...]
    group: int
    family: int = 0

    def names(self) -> list[str]:
        """All parameters of the class, in order."""
        return [name for application in self.members for name in application]

    @cached_property
    def updated(self) -> frozenset[str]:
        """All parameters of the class, to ask whether one is among them."""
        return frozenset(self.names())


@dataclass(frozen=True)
class Update:
    """One call of ``zc.step``: the optimizer's name in this program, and its classes.

    ``handle`` is that of the optimizer, ``scaler`` that of the ``GradScaler`` which is asked first,
    -1 for none.
    """

    optimizer: str
    classes: tuple[UpdateClass, ...]
    scaler: int = -1
    handle: int = -1

    def state_name(self, key: str, param: str) -> str:
        """Entry of the state table for ``optimizer.state[param][key]``."""
        return f"{self.optimizer}.{key}[{param}]"

    def shared_name(self, key: str, kind: UpdateClass) -> str:
        """Entry for a state that the parameters of a family share: step counts."""
        return f"{self.optimizer}.{key}[set {kind.family}]"

    def family_names(self, kind: UpdateClass) -> list[str]:
        """All parameters of the family of ``kind``, class by class."""
        alike = [other for other in self.classes if other.family == kind.family]
        return [name for other in alike for name in other.names()]

    def scaler_name(self, key: str) -> str:
        """Entry for what the scaler of this update keeps, or (``found_inf``) is told."""
        return f"{self.optimizer}.scaler[{key}]"

    def number_name(self, key: str, group: int) -> str:
        """Entry for a number of a parameter group."""
        return f"{self.optimizer}.{key}[group {group}]"

    @property
    def rounding_step(self) -> str:
        """Entry for the count of steps that round stochastically."""
        return self.number_name(ROUNDING_STEP, 0)


def choose(condition: Any, left: Any, right: Any) -> Any:
    """``left`` where ``condition`` holds, else ``right``: a branch that depends on data."""
    return left if condition else right


def keep_number(value: float, name: str) -> float:
    """Stands for storing ``value`` as the state entry ``name``; the executor stores it."""
    del name
    return value


fx.node.has_side_effect(keep_number)


def is_marker(node: fx.Node) -> bool:
    """Whether ``node`` stands for an optimizer's step, which ``shard_update`` has yet to inline."""
    return node.op == "call_function" and _is_marker_op(node.target)


@cache
def _is_marker_op(target: Any) -> bool:
    return str(target) == "zc.update.default"


def is_number(value: Any) -> bool:
    """Whether a type is that of a Python number, which the host computes."""
    return isinstance(value, (float, int, bool))


def host_nodes(body: Body) -> list[fx.Node]:
    """What a body computes from values that the host knows alone, in order."""
    inputs = zip(body.placeholders(), body.inputs, strict=True)
    known = {node for node, slot in inputs if slot.on_host}
    found = []
    for node in body.graph.nodes:
        if node.op != "call_function":
            continue
        value = node.meta["val"]
        small = is_number(value) or (isinstance(value, torch.Tensor) and value.dim() == 0)
        if small and all(source in known for source in node.all_input_nodes):
            known.add(node)
            found.append(node)
    return found
