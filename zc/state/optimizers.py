"""Optimizers that compiled steps know: the handles that stand for them, and what they hold.

One that holds parameters which ``zc.shard`` replaced would train nothing and is refused.
"""

import functools
import weakref
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from zc.errors import ShardError
from zc.state.handles import Handles
from zc.state.spec import replaced_name


class _Held:
    """The parameters of each optimizer, as ``of_<handle>``.

    Dynamo bakes in what it reaches through an optimizer; of a dictionary it sees the keys that
    there were when it first looked.
    """


_held = _Held()
_optimizers = Handles[Optimizer](
    "the optimizer of a compiled step is gone; keep it while the step is used",
    forget=lambda handle: vars(_held).pop(f"of_{handle}", None),
)


def check_optimizer(optimizer: Optimizer, model: nn.Module | None = None) -> None:
    """Refuse an optimizer that was built before ``zc.shard`` or ``zc.materialize``.

    With ``model``, also refuse one that holds no parameter of it.

    Raises:
        ShardError: naming the first parameter concerned.
    """
    held = held_by(optimizer)
    for param in held:
        name = replaced_name(param)
        if name is not None:
            raise ShardError(
                f"{type(optimizer).__name__} holds '{name}' as it was before zc.shard and would "
                f"train nothing; build the optimizer after zc.shard and zc.materialize"
            )
    if model is not None and {id(p) for p in held}.isdisjoint(id(p) for p in model.parameters()):
        raise ShardError(
            f"{type(optimizer).__name__} holds no parameter of {type(model).__name__}; build it "
            f"from model.parameters() after zc.shard"
        )


@functools.cache
def watch_optimizers() -> None:
    """Check every optimizer of this process at each step from now on."""
    register_optimizer_step_pre_hook(_before_step)


def _before_step(optimizer: Any, args: Any, kwargs: Any) -> None:
    if not torch.compiler.is_compiling():
        check_optimizer(optimizer)


def with_gradients(optimizer: Optimizer) -> list[Any]:
    """The parameters of ``optimizer`` that have gradients.

    Reading ``param_groups`` in a compiled function would compile it for each learning rate.
    """
    held = getattr(_held, f"of_{handle_in_program(optimizer)}")
    return [param for param in held if param.grad is not None]


def optimizer_of(handle: int) -> Optimizer:
    """The optimizer that a marker's handle stands for.

    Raises:
        ShardError: when it is gone.
    """
    return _optimizers.get(handle)


@torch.compiler.assume_constant_result
def handle_in_program(optimizer: Optimizer) -> int:
    """The handle of ``optimizer``; called once per compilation.

    Raises:
        ShardError: for one that was built before ``zc.shard`` or has hooks around its step.
    """
    check_optimizer(optimizer)
    hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    if hooks:
        raise ShardError(
            f"{type(optimizer).__name__} has hooks around its step, which a compiled step cannot "
            f"call; remove them, or call zc.step outside the compiled function"
        )
    handle = handle_of(optimizer)
    setattr(_held, f"of_{handle}", held_by(optimizer))
    return handle


def handle_of(optimizer: Optimizer) -> int:
    """A number for ``optimizer``, the same each time."""
    handle, first = _optimizers.of(optimizer)
    if first:
        _watch_groups(optimizer, handle)
    return handle


def held_by(optimizer: Optimizer) -> list[torch.Tensor]:
    """All parameters of ``optimizer``, in order."""
    return [param for group in optimizer.param_groups for param in group["params"]]


def _watch_groups(optimizer: Optimizer, handle: int) -> None:
    """Compile anew when the optimizer gets a further parameter group."""
    add = type(optimizer).add_param_group
    mine = weakref.ref(optimizer)

    @functools.wraps(add)
    def add_param_group(group: dict[str, Any]) -> None:
        owner = mine()
        assert owner is not None
        add(owner, group)
        setattr(_held, f"of_{handle}", held_by(owner))

    optimizer.add_param_group = add_param_group  # type: ignore[method-assign]
