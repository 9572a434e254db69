"""Collectives of a parameter that wait for the last micro-batch: what ``zc.no_sync`` holds back.

A compiled program is the same inside and outside of ``zc.no_sync``; how its loop carries out the
gather and the reduction of a parameter depends on the parameter's ``Deferred``:

    held         the reduction adds its operand to ``total`` and gives zeros, the gather's result
                 is kept for the next one
    pending      ``total`` is there and nothing is held: the reduction sends the sum of both
    otherwise    as written
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from zc import torch_private
from zc.comm.pending import Pending
from zc.errors import ShardError
from zc.state.versions import version_of

_NAME = "_zc_deferred"  # an attribute: weak references would keep model.to from working
Start = Callable[..., Any]


class Deferred:
    """What is held back of one parameter.

    Attributes:
        held: how many ``no_sync`` the parameter is in.
        total: the sum of whole gradients that no rank has sent yet, at least in fp32.
        param: the parameter, as long as any of this matters.
    """

    count = 0  # of parameters in some no_sync

    def __init__(self) -> None:
        self.held = 0
        self.total: torch.Tensor | None = None
        self.param: torch.Tensor | None = None
        self._task = -1  # the backward that added last
        self._kept: tuple[Any, torch.Tensor] | None = None  # a gathered value, and of what

    def __deepcopy__(self, memo: dict[int, Any]) -> "Deferred":
        return Deferred()

    def hold(self, param: torch.Tensor) -> None:
        """``param`` is in one more ``no_sync``."""
        self.held += 1
        self.param = param
        Deferred.count += self.held == 1

    def release(self) -> None:
        """It is in one less."""
        self.held -= 1
        Deferred.count -= self.held == 0
        if not self.held and not self.pending():
            self._end()

    def pending(self) -> bool:
        """Whether there are gradients that wait; not where the user has cleared gradients since."""
        return self.total is not None and not self._cleared()

    def gather(self, start: Start, operand: torch.Tensor, *args: Any) -> Pending:
        """Start a gather, or take what was gathered before the parameter changed."""
        return self.kept(operand) or self.keeping(operand, start(operand, *args))

    def kept(self, operand: torch.Tensor) -> Pending | None:
        """What was gathered of ``operand`` before, if that is still what it is."""
        kept, self._kept = self._kept, None
        if self.idle or kept is None or kept[0] != self._version(operand):
            return None
        return Pending(None, lambda: self._keep(*kept))

    def keeping(self, operand: torch.Tensor, pending: Pending) -> Pending:
        """``pending``, the gather of ``operand``, whose result is kept where that matters."""
        if self.idle:
            return pending
        version = self._version(operand)
        return Pending(None, lambda: self._keep(version, pending.wait()))

    def reduce(self, start: Start, operand: torch.Tensor, *args: Any, world: int) -> Pending:
        """Start a reduction, or add to what waits; ``world`` blocks of ``operand`` give one."""
        sent = self.add(operand)
        return self.zeros(operand, world) if sent is None else start(sent, *args)

    def add(self, operand: torch.Tensor) -> torch.Tensor | None:
        """What is to be reduced in place of ``operand``; nothing where that is held back."""
        if self.idle:
            return operand
        wide = torch.promote_types(operand.dtype, torch.float32)
        waiting = self.total if self.pending() else None
        total = operand.to(wide, copy=True) if waiting is None else waiting.add_(operand)
        if not self.held:
            self._end()
            return total.to(operand.dtype)
        self.total, self._task = total, torch_private.backward_number()
        return None

    def zeros(self, operand: torch.Tensor, world: int) -> Pending:
        """Stands for the reduction of an ``operand`` that is held back."""
        shape = list(operand.shape)
        shape[:1] = [size // world for size in shape[:1]]
        return Pending(None, lambda: operand.new_zeros(shape))

    @property
    def idle(self) -> bool:
        """Whether collectives go on as written."""
        return not self.held and self.total is None

    def _version(self, operand: torch.Tensor) -> Any:
        assert self.param is not None
        return version_of(self.param), operand.dtype

    def _keep(self, key: Any, value: torch.Tensor) -> torch.Tensor:
        if self.held:
            self._kept = (key, value)
        return value

    def _cleared(self) -> bool:
        """Each backward leaves a gradient, zeros where it was held back."""
        assert self.param is not None
        return self.param.grad is None and self._task != torch_private.backward_number()

    def _end(self) -> None:
        self.total = self.param = self._kept = None


def gather_bucket(
    deferred: Sequence[Deferred], start: Start, operands: Sequence[torch.Tensor], *args: Any
) -> Any:
    """``Deferred.gather`` of each operand; what has to be gathered is one bucket."""
    if all(one.idle for one in deferred):
        return start(operands, *args)
    found = [one.kept(operand) for one, operand in zip(deferred, operands, strict=True)]
    missing = [i for i, pending in enumerate(found) if pending is None]
    bucket = start([operands[i] for i in missing], *args) if missing else []
    for place, i in enumerate(missing):
        found[i] = deferred[i].keeping(operands[i], bucket[place])
    return found


def reduce_bucket(
    deferred: Sequence[Deferred],
    start: Start,
    operands: Sequence[torch.Tensor],
    *args: Any,
    world: int,
) -> Any:
    """``Deferred.reduce`` of each operand; what is reduced is one bucket."""
    if all(one.idle for one in deferred):
        return start(operands, *args)
    sent = [one.add(operand) for one, operand in zip(deferred, operands, strict=True)]
    going = [value for value in sent if value is not None]
    bucket = start(going, *args) if going else []
    places = iter(range(len(going)))
    return [
        one.zeros(operand, world) if value is None else bucket[next(places)]
        for one, operand, value in zip(deferred, operands, sent, strict=True)
    ]


def deferred_of(param: torch.Tensor) -> Deferred:
    """What is held back of ``param``."""
    return vars(param).setdefault(_NAME, Deferred())


def refusing(name: str, loop: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
    """``loop``, that of a whole step, which cannot wait for anything; ``name`` is the program's."""

    def run(args: list[Any]) -> Any:
        if Deferred.count:
            raise ShardError(
                f"{name} has its backward() inside and runs within zc.no_sync, which holds back "
                f"what backward() outside of compiled code reduces; compile the model instead "
                f"(level 1), or leave zc.no_sync out"
            )
        return loop(args)

    return run


def refuse_pending(owner: str, params: Iterable[torch.Tensor]) -> None:
    """Refuse to step ``params`` while gradients of some of them wait.

    Raises:
        ShardError: naming the place of the first one.
    """
    for place, param in enumerate(params):
        deferred = vars(param).get(_NAME)
        if deferred is not None and deferred.pending():
            raise ShardError(
                f"{owner} would leave out gradients of its parameter {place}, shape "
                f"{list(param.shape)}, that zc.no_sync has kept: run backward() of the last "
                f"micro-batch outside of zc.no_sync (it must reach this parameter), or call "
                f"optimizer.zero_grad() to drop them"
            )
