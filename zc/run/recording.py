"""Recorded parts of a loop: what a replay needs, and what it leaves behind.

    def step(args):                                 def recorded0(args):
        w, exp_avg, x, = args                           w, x, seed, = args
        seed, lr = cell.value, cell_1.value             args.clear()
        mm_1, mean, = recorded0([w, x, seed])           ...
        fused_update([w, exp_avg], [mm_1], [lr])        return [mm_1, mean]
        mean = mean.clone()
        return [mean]

The first calls run plainly, which compiles what is compiled at first use and connects the process
group. Then the part is recorded, and from there on replayed.

- **Inputs.** Parameters, buffers, state, constants, what another recorded part returns, and what
  some node writes to are recorded by address. Address, shape, strides and dtype are compared at
  each call. Others than recorded mean a plain call, and a new recording once two calls agree; after
  ``MAX_CHANGES`` in a short time, a warning and the plain loop. All else is copied into buffers of
  the recording.
- **Numbers** are no input of a recorded part (``zc.run.recordable``); kernels of the update read
  them from a table, which is an input that is copied (``zc.run.number_tables``).
- **Seeds** are: the generators of a part's random nodes are seeded with them in front of each
  replay, so that a replay draws what the plain loop draws.
- **Results** lie in the memory of the recording and last until its next replay, behind all that the
  loop reads them for. What leaves the program is a copy.
- **The process** is told what it does not see: versions of tensors that a replay has written to,
  bytes that it has sent.

Collectives are recorded with the rest. NCCL wants all ranks to record together, so what moves
parameters or state to other addresses has to be done on all of them.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from zc.capture.random_ops import Generators, drawing_from, stream_seed, turn_seed
from zc.codegen.tables import Waiting, filled_behind
from zc.comm.wire import METER
from zc.errors import CommunicationError, ExecutionError

WARM_CALLS = 2
MAX_CHANGES = 32  # fp16 may skip a first step so often, which makes new state each time
STEADY_REPLAYS = 100  # after so many, earlier changes no longer count
Tensors = list[torch.Tensor]
Run = Callable[[], Tensors]
Binding = Literal["address", "copy", "seed"]


@dataclass(frozen=True)
class Recording:
    """What repeats one recorded run, and returns the results it left behind."""

    replay: Run


class Recorder(Protocol):
    """How runs are recorded.

    Attributes:
        device_type: of the tensors that a recording computes.
        backends: those of process groups whose collectives it can hold.
    """

    device_type: str
    backends: tuple[str, ...]

    def warm(self, run: Run) -> Tensors:
        """Run without recording, where a recording would."""
        ...

    def record(self, run: Run, generators: Sequence[torch.Generator]) -> Recording:
        """Record ``run``, which draws from ``generators``; nothing is computed yet."""
        ...


@dataclass(frozen=True)
class Draw:
    """One random node in one turn: the input that its seed is, where it draws, and its offset.

    ``turn`` is ``None`` outside of loops over micro-batches.
    """

    seed: int
    turn: int | None
    offset: int
    device: torch.device


@dataclass(frozen=True)
class PartSpec:
    """What is known of a part before it runs.

    Attributes:
        name: of the part, in its program.
        inputs: how each is bound.
        written: positions of inputs that the part writes to.
        draws: of random numbers, in order.
    """

    name: str
    inputs: tuple[Binding, ...]
    written: tuple[int, ...] = ()
    draws: tuple[Draw, ...] = ()


class RecordedPart:
    """A function on a list of values that records itself and is replayed from then on.

    Args:
        spec: what is known of it.
        run: the function.
        recorder: records it.
    """

    def __init__(
        self, spec: PartSpec, run: Callable[[list[Any]], Tensors], recorder: Recorder
    ) -> None:
        self._spec, self._run, self._recorder = spec, run, recorder
        self._calls = self._changes = self._replays = self.recorded = 0
        self._given_up = False
        self._sent: dict[str, int] = {}
        self._recording: Recording | None = None
        self._types: list[Any] = []
        self._static: list[Any] = []
        self._generators: list[torch.Generator] = []
        self._tables: Waiting = []

    def __call__(self, values: Tensors) -> Tensors:
        """The results of one call.

        Raises:
            ExecutionError: when the part cannot be recorded.
        """
        if self._given_up:
            return self._run(list(values))
        self._calls += 1
        pairs = zip(values, self._spec.inputs, strict=True)
        types = [_type_of(value, how) for value, how in pairs if how != "seed"]
        changed, self._types = types != self._types, types
        if changed or self._calls <= WARM_CALLS:
            return self._plainly(values, changed)
        if self._recording is None:
            self._record(values)
        self._refill(values)
        return self._replay()

    def _plainly(self, values: Tensors, changed: bool) -> Tensors:
        if changed:
            self._recording, self._replays = None, 0
            self._changes += 1
            self._static, self._generators, self._tables = [], [], []
        if self._changes > MAX_CHANGES:
            self._give_up()
        before = dict(METER.sent)
        results = self._recorder.warm(lambda: self._run(list(values)))
        self._sent = {op: n - before.get(op, 0) for op, n in METER.sent.items()}
        return results

    def _record(self, values: Tensors) -> None:
        self.recorded += 1
        pairs = zip(values, self._spec.inputs, strict=True)
        self._static = [_room_for(v) if how == "copy" else v for v, how in pairs]
        self._generators = [torch.Generator(draw.device) for draw in self._spec.draws]
        generators: Generators = {}
        for draw, generator in zip(self._spec.draws, self._generators, strict=True):
            generators.setdefault((_seed(draw, values), draw.offset), []).append(generator)
        run, static = self._run, self._static

        def once() -> Tensors:
            with drawing_from(generators):
                return run(list(static))

        sent = dict(METER.sent)
        try:
            with filled_behind() as self._tables:
                self._recording = self._recorder.record(once, self._generators)
        except CommunicationError:
            raise
        except RuntimeError as error:
            raise ExecutionError(
                f"{self._spec.name} cannot be recorded: {str(error).splitlines()[0]}; an operation "
                f"in it waits for the device or works on the host: leave cuda_graph out"
            ) from error
        METER.sent = sent

    def _refill(self, values: Tensors) -> None:
        for static, value, how in zip(self._static, values, self._spec.inputs, strict=True):
            if how == "copy":
                _flat(static).copy_(_flat(value))
        for draw, generator in zip(self._spec.draws, self._generators, strict=True):
            generator.manual_seed(stream_seed(_seed(draw, values), draw.offset))

    def _replay(self) -> Tensors:
        assert self._recording is not None
        self._replays += 1
        if self._replays == STEADY_REPLAYS:
            self._changes = 0
        sent = dict(METER.sent)
        results = list(self._recording.replay())
        METER.sent = sent
        for op, count in self._sent.items():
            METER.add(op, count)
        torch.autograd.graph.increment_version([self._static[i] for i in self._spec.written])
        return results

    def _give_up(self) -> None:
        self._given_up = True
        warnings.warn(
            f"{self._spec.name}: inputs have been at other addresses or of other types "
            f"{self._changes} times; it runs without a CUDA graph from here on",
            stacklevel=2,
        )


def _seed(draw: Draw, values: Sequence[torch.Tensor]) -> int:
    seed = int(values[draw.seed])
    return seed if draw.turn is None else turn_seed(seed, draw.turn)


def _type_of(value: torch.Tensor, how: Binding) -> tuple[Any, ...]:
    address = value.data_ptr() if how == "address" else 0
    return (address, value.dtype, value.shape, value.stride())


def _room_for(value: torch.Tensor) -> torch.Tensor:
    return _flat(value).clone().as_strided(value.shape, value.stride())


def _flat(value: torch.Tensor) -> torch.Tensor:
    """The memory that ``value`` covers, as one dimension."""
    steps = zip(value.shape, value.stride(), strict=True)
    extent = 1 + sum((size - 1) * stride for size, stride in steps) if value.numel() else 0
    return value.as_strided((extent,), (1,))
