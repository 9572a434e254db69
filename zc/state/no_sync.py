"""``zc.no_sync(model)``: gradients of several micro-batches, reduced once."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from zc.errors import ShardError
from zc.run.deferred import deferred_of, refuse_pending
from zc.state.versions import watch_steps


@contextmanager
def no_sync(model: nn.Module) -> Iterator[None]:
    """Let ``backward()`` of a compiled ``model`` (level 1) add up gradients without sending them.

        for i, (x, y) in enumerate(microbatches):
            last = i + 1 == len(microbatches)
            with contextlib.nullcontext() if last else zc.no_sync(model):
                loss_fn(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    The first ``backward()`` outside sends the sum of all, as with ``DistributedDataParallel``:
    ranks average the sums over their micro-batches. Under ``zero_stage`` 0, 1 and 2, gradients are
    reduced once for all micro-batches, and under 1 and 2 parameters are gathered once, unless they
    change meanwhile; every rank keeps the whole gradients (in fp32 at least) until they are sent,
    and the whole parameters. Under ``zero_stage`` 3, where neither is ever kept whole, and in
    uncompiled code, each ``backward()`` reduces as ever: results are the same, up to the order of
    additions.

    Inside, ``param.grad`` is zeros beside what it was: clipping belongs behind the last
    ``backward()``. ``optimizer.step()`` is refused while gradients wait; ``zero_grad()`` drops them
    (with ``set_to_none=True``, torch's default). They are no part of a ``state_dict()``. Entering
    compiles nothing; ``torch.autograd.grad`` is not for use inside.

    Raises:
        ShardError: inside a compiled function, and from ``optimizer.step()`` as said above.
    """
    if torch.compiler.is_compiling():
        raise ShardError(
            "zc.no_sync stands inside a compiled function; put it around the call of the compiled "
            "model and its backward()"
        )
    _watch_pending()
    watch_steps()
    held = [(param, deferred_of(param)) for param in model.parameters() if param.requires_grad]
    for param, deferred in held:
        deferred.hold(param)
    try:
        yield
    finally:
        for _, deferred in held:
            deferred.release()


@functools.cache
def _watch_pending() -> None:
    register_optimizer_step_pre_hook(_before_step)


def _before_step(optimizer: Any, args: Any, kwargs: Any) -> None:
    if not torch.compiler.is_compiling():
        params = [param for group in optimizer.param_groups for param in group["params"]]
        refuse_pending(f"{type(optimizer).__name__}.step", params)
