"""When reading ``module.weight`` gives the full tensor, and the eager way of getting it.

Inside a sharded module's ``__call__``, inside a compiled function, in backward
(``torch.utils.checkpoint`` runs forward code there) and within ``full(model)``; everywhere else it
gives the ``DTensor``.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from zc import torch_private
from zc.errors import ShardError
from zc.state.markers import PARAM
from zc.state.versions import version_of, watch_steps

CACHE = "_zc_full_values"  # per module, within full(model): gathered values
MARKERS = "_zc_markers"  # per module: parameter name -> arguments of zc::param


class _Reading(threading.local):
    """Whether this thread is inside the ``__call__`` of a sharded module."""

    def __init__(self) -> None:  # of every thread: a class attribute would change Dynamo's guards
        self.inside = False


READING = _Reading()


def local_of(param: torch.Tensor) -> torch.Tensor:
    """This rank's shard; the parameter itself where there is no process group."""
    return param.to_local() if isinstance(param, DTensor) else param


@torch.compiler.disable
def read_now(module: nn.Module, name: str, param: torch.Tensor) -> torch.Tensor:
    """What an uncompiled read of ``module.<name>`` gives here and now."""
    cache = module.__dict__.get(CACHE)
    if cache is None and not READING.inside and not torch_private.in_backward():
        return param
    arguments = module.__dict__[MARKERS][name]
    if cache is None:
        return PARAM(local_of(param), *arguments)
    local = local_of(param)
    key = (id(param), torch.is_grad_enabled() and param.requires_grad)
    version, value, _ = cache.get(key, (None, None, None))
    now = version_of(param)
    if version != now:
        value = PARAM(local, *arguments)
        cache[key] = (now, value, param)  # while it is held, its id stays its own
    return value


@contextmanager
def full(model: nn.Module) -> Iterator[nn.Module]:
    """Let reads of ``model``'s parameters give full tensors, gathered at the first read and kept.

        with zc.full(model):
            print(model.head.weight.norm())

    Every rank must read the same parameters in the same order. Writing into what is read changes no
    parameter; an optimizer step inside the context is seen by the next read.

    Raises:
        ShardError: for a model that is not sharded.
    """
    if torch.compiler.is_compiling():  # where every read is full
        yield model
        return
    modules = [m for m in model.modules() if MARKERS in m.__dict__]
    if not modules:
        raise ShardError("zc.full(model) needs a sharded model; call zc.shard(model) first")
    kept: list[Any] = [m.__dict__.get(CACHE) for m in modules]
    watch_steps()
    values: dict[Any, Any] = {}
    for module in modules:
        module.__dict__[CACHE] = values
    try:
        yield model
    finally:
        for module, before in zip(modules, kept, strict=True):
            if before is None:
                del module.__dict__[CACHE]
            else:
                module.__dict__[CACHE] = before
