"""``zc.microbatches``: one function run on every part of a batch, with gradients added up.

    zc::micro_split(batch, count)             one micro-batch of each tensor
    zc::micro_join(losses, count, reduce)     what the function returned, combined over all of them

In a function compiled with ``backend="zero"`` the markers enclose what is traced of the function,
once, at the size of a micro-batch; capture makes a loop of it. Elsewhere it is a Python loop.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import fx
from torch.overrides import TorchFunctionMode

from zc import torch_private
from zc.errors import MicrobatchError
from zc.program.loops import accumulation_dtype

Reduce = Literal["mean", "sum"]
_library = torch.library.Library("zc", "FRAGMENT")
_library.define("micro_split(Tensor[] batch, int count) -> Tensor[]")
_library.define("micro_join(Tensor[] losses, int count, str reduce) -> Tensor[]")
SPLIT: Any = torch.ops.zc.micro_split.default
JOIN: Any = torch.ops.zc.micro_join.default
for _mark in (SPLIT, JOIN):
    fx.node.has_side_effect(_mark)


@torch.library.register_fake("zc::micro_split")
def _split_type(batch: Sequence[torch.Tensor], count: int) -> list[torch.Tensor]:
    return [t.narrow(0, 0, t.shape[0] // count).clone() for t in batch]


@torch.library.register_fake("zc::micro_join")
def _join_type(losses: Sequence[torch.Tensor], count: int, reduce: str) -> list[torch.Tensor]:
    return [torch.empty_like(t, dtype=_result_dtype(t.dtype)) for t in losses]


def microbatches(fn: Callable[..., Any], count: int, *batch: torch.Tensor, reduce: Reduce) -> Any:
    """Run ``fn`` on each of ``count`` equal parts of ``batch``, and add up its gradients.

        def loss_of(x, y):
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss.detach()

        loss = zc.microbatches(loss_of, 4, x, y, reduce="mean")
        zc.step(optimizer)

    Gradients are then those of the mean (or the sum) of the losses, added to what ``.grad`` held
    before: with ``reduce="mean"`` and losses that are means over their rows, one backward of the
    loss of the whole batch. In a compiled step they are added up in fp32, or in the dtype of their
    reduction over ranks where that is wider: sums of many small numbers lose bits in bf16. Stages 0
    and 1 reduce the sum over ranks once, stages 2 and 3 the gradient of each micro-batch.

    Args:
        fn: takes one micro-batch of each tensor, calls ``backward()`` on the loss of these, and
            returns it: a 0-d tensor, or a tuple, list or dict of them. It may write buffers, and
            its arguments, which are copies. Clipping, stepping and ``zero_grad`` belong behind or
            before this call. In a compiled step its Python code runs once, when it is captured: it
            can keep no tensor, and what it counts, it counts once.
        count: the number of micro-batches; another one compiles a step anew.
        batch: tensors of ``[rows, ...]``; ``rows`` is a multiple of ``count``.
        reduce: how losses and gradients combine.

    Returns:
        What ``fn`` returns, combined; numbers in fp32 at least, rounded to their own dtype at the
        end, whole numbers in int64.

    Raises:
        MicrobatchError: for a batch that cannot be split, or a function that does not do as it
            should.
        CaptureError: for a function that cannot be the body of a loop in a compiled step.
    """
    _check(count, batch, reduce)
    if not (torch.compiler.is_compiling() and _is_program()):
        return _run_each(fn, count, batch, reduce)
    result = fn(*torch.ops.zc.micro_split(list(batch), count))
    losses = [loss.detach() for loss in _losses_of(result, reduce)]
    return _like(result, torch.ops.zc.micro_join(losses, count, reduce))


class _Running(threading.local):
    """Whether this thread is inside ``microbatches``."""

    def __init__(self) -> None:
        self.inside = False


_RUNNING = _Running()


class _Backward(TorchFunctionMode):
    """Counts calls of ``loss.backward()``, and weighs their gradients."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.Tensor.backward:
            return func(*args, **kwargs)
        self.calls += 1
        if self.weight == 1:
            return func(*args, **kwargs)
        loss, gradient, *rest = (*args, *(None,) * (2 - len(args)))
        gradient = kwargs.pop("gradient", gradient)
        scaled = torch.ones_like(loss) if gradient is None else gradient
        return func(loss, scaled * self.weight, *rest, **kwargs)


@torch.compiler.assume_constant_result
def _is_program() -> bool:
    """Whether what is being compiled becomes a program of zc, ``backward()`` included."""
    return torch_private.trace_backward("zc")


def _run_each(
    fn: Callable[..., Any], count: int, batch: Sequence[torch.Tensor], reduce: Reduce
) -> Any:
    """The loop outside a compiled step."""
    weight = 1 / count if reduce == "mean" else 1.0
    sums: list[torch.Tensor] = []
    result: Any = None
    _RUNNING.inside = True
    try:
        for micro in zip(*(t.split(t.shape[0] // count) for t in batch), strict=True):
            with _Backward(weight) as backward:
                result = fn(*(part.clone() for part in micro))
            if not backward.calls:
                raise MicrobatchError(
                    "the function of zc.microbatches computes no gradient; call backward() on its "
                    "loss there"
                )
            losses = [loss.detach() for loss in _losses_of(result, reduce)]
            sums = sums or [_zero(loss) for loss in losses]
            for total, loss in zip(sums, losses, strict=True):
                _ = total.add_(loss) if weight == 1 else total.add_(loss, alpha=weight)
    finally:
        _RUNNING.inside = False
    found = [t.to(_result_dtype(loss.dtype)) for t, loss in zip(sums, losses, strict=True)]
    return _like(result, found)


def _zero(loss: torch.Tensor) -> torch.Tensor:
    return torch.zeros((), dtype=accumulation_dtype(loss.dtype), device=loss.device)


def _result_dtype(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype.is_floating_point or dtype.is_complex else torch.int64


def _check(count: int, batch: Sequence[Any], reduce: str) -> None:
    if _RUNNING.inside:
        raise MicrobatchError(
            "zc.microbatches is called inside the function of another zc.microbatches; call it "
            "once, with the product of both counts"
        )
    if reduce not in get_args(Reduce):
        raise MicrobatchError(f"reduce is {reduce!r}; say 'mean' or 'sum'")
    if count < 1:
        raise MicrobatchError(f"zc.microbatches into {count} parts; give a count of 1 or more")
    if not batch:
        raise MicrobatchError(
            "zc.microbatches has no batch to split; pass its tensors behind the count"
        )
    for position, entry in enumerate(batch):
        _check_entry(position, entry, count)


def _check_entry(position: int, entry: Any, count: int) -> None:
    if not isinstance(entry, torch.Tensor):
        raise MicrobatchError(
            f"entry {position} of the batch is a {type(entry).__name__}; pass tensors, and let the "
            f"function reach other values by itself"
        )
    if entry.dim() == 0 or entry.shape[0] % count or entry.shape[0] == 0:
        raise MicrobatchError(
            f"entry {position} of the batch has shape {list(entry.shape)}, whose rows do not "
            f"divide into {count} micro-batches; pad the batch, or choose another count"
        )
    if entry.requires_grad:
        raise MicrobatchError(
            f"entry {position} of the batch requires a gradient, which would come out in parts; "
            f"pass entry.detach()"
        )


def _losses_of(result: Any, reduce: str) -> list[torch.Tensor]:
    """The losses in what the function returned."""
    items = list(result.values()) if isinstance(result, dict) else result
    items = list(items) if isinstance(items, (tuple, list)) else [items]
    for item in items:
        if not isinstance(item, torch.Tensor) or item.dim():
            shape = f" of shape {list(item.shape)}" if isinstance(item, torch.Tensor) else ""
            raise MicrobatchError(
                f"the function of zc.microbatches returned a {type(item).__name__}{shape}; return "
                f"0-d tensors, alone or in a tuple, list or dict: they are combined over the "
                f"micro-batches"
            )
        if reduce == "mean" and not item.dtype.is_floating_point:
            raise MicrobatchError(
                f"the function of zc.microbatches returned a {item.dtype} number, which has no "
                f"mean in its dtype; return item.float()"
            )
    return items


def _like(result: Any, values: Sequence[torch.Tensor]) -> Any:
    """``values`` in the form of ``result``."""
    if isinstance(result, dict):
        return dict(zip(result, values, strict=True))
    if isinstance(result, list):
        return list(values)
    return tuple(values) if isinstance(result, tuple) else values[0]


torch_private.never_compile_alone(microbatches)
