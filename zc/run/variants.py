"""A compiled function with optimizer steps inside: one loop for each trace of them.

run(args):  the variant whose traces hold, made where there is none; its loop; what is left to
            do after a step
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zc import clock
from zc.errors import ExecutionError
from zc.program.copying import copy_program
from zc.program.program import Program
from zc.run.caches import CastCell
from zc.run.deferred import refuse_pending
from zc.state.optimizers import optimizer_of
from zc.update.stepping import BoundStep, OptimizerStep

Loop = Callable[[list[Any]], list[Any]]
MAX_VARIANTS = 16


@dataclass(frozen=True)
class Store:
    """What a loop calls to keep the next value of a counter."""

    steps: Sequence[BoundStep]

    def __call__(self, value: float, name: str) -> None:
        """Keep ``value`` as the entry ``name`` of the state table."""
        for step in self.steps:
            if name.startswith(f"{step.update.optimizer}."):
                step.store_number(name, value)


@dataclass
class Variant:
    """One set of traces, its program after all passes, and its loop once that is needed."""

    steps: list[BoundStep]
    program: Program
    caches: dict[str, CastCell]
    loop: Loop | None = None

    def cells(self) -> Mapping[str, Any]:
        """Where the loop reads late-bound state."""
        return self.caches | {name: cell for s in self.steps for name, cell in s.cells.items()}


class Variants:
    """The variants of one function.

    Args:
        logical: the program as captured, which is left as it is.
        steps: its optimizer steps, in the order of their markers.
        transform: runs the passes on a program, in place.
        build: makes the loop of a variant.
    """

    def __init__(
        self,
        logical: Program,
        steps: Sequence[OptimizerStep],
        transform: Callable[[Program], None],
        build: Callable[[Variant], Loop],
    ) -> None:
        self._logical = logical
        self._steps = list(steps)
        self._transform = transform
        self._build = build
        self._variants: list[Variant] = []
        self._caches: dict[str, CastCell] = {}
        self._last: Variant | None = None

    def trace(self) -> Variant:
        """Trace the optimizers as they are now, and run the passes on a program with that.

        Raises:
            ExecutionError: when the optimizer would have to be traced again and again.
        """
        if len(self._variants) >= MAX_VARIANTS:
            broken = [s.broken() for v in self._variants for s in v.steps]
            places = sorted({place for place in broken if place is not None})
            raise ExecutionError(
                f"{self._logical.name}: the optimizer has been traced {MAX_VARIANTS} times, since "
                f"numbers that change decide how it steps"
                f"{': ' + ', '.join(places) if places else ''}; keep them in tensors there"
            )
        if self._variants:
            clock.mark()  # the first one is part of a compilation that goes on
        program = copy_program(self._logical)
        names = _names([optimizer_of(step.handle) for step in self._steps])
        with clock.spending("optimizer traces"):
            bound = [BoundStep(s, n, program) for s, n in zip(self._steps, names, strict=True)]
        program.updates = [step.update for step in bound]
        self._transform(program)
        for step in bound:
            step.keeps(program.state)
            step.adopt(program)
        variant = Variant(bound, program, self._caches_of(program, bound))
        self._variants.append(variant)
        return variant

    def run(self, args: list[Any]) -> list[Any]:
        """One call of the function."""
        variant = self._current()
        for step in variant.steps:
            step.bind()
        if variant.loop is None:
            variant.loop = self._build(variant)
        result = variant.loop(args)
        for part in (*variant.steps, *variant.caches.values()):
            part.finished()
        return result

    def _caches_of(self, program: Program, steps: Sequence[BoundStep]) -> dict[str, CastCell]:
        """The casts that ``program`` keeps; variants share them."""
        params = {name: param for step in steps for name, param in step.params.items()}
        for entry in program.state.values():
            if entry.kind == "cache" and entry.dtype and entry.name not in self._caches:
                layout = program.params[entry.param].layout
                self._caches[entry.name] = CastCell(params[entry.param], layout, entry.dtype)
        return {name: self._caches[name] for name in program.state if name in self._caches}

    def _current(self) -> Variant:
        """The variant that holds now: the last one as a rule."""
        params = [step.params() for step in self._steps]
        for held in params:
            refuse_pending(self._logical.name, held.values())
        ordered = [self._last] if self._last else []
        for variant in [*ordered, *(v for v in self._variants if v is not self._last)]:
            if all(s.holds(p) for s, p in zip(variant.steps, params, strict=True)):
                break
        else:
            variant = self.trace()
            if not all(s.holds(p) for s, p in zip(variant.steps, params, strict=True)):
                raise ExecutionError(
                    f"{self._logical.name}: a fresh trace of the optimizer does not describe it; "
                    f"please report this with the dump of options={{'dump': DIR}}"
                )
        if self._last is not None and self._last is not variant:
            for step in self._last.steps:
                step.release()
        self._last = variant
        return variant


def _names(optimizers: Sequence[Any]) -> list[str]:
    """``adamw``, ``adamw_2``: names that no other optimizer of the program has."""
    names: list[str] = []
    for optimizer in optimizers:
        base = type(optimizer).__name__.lower()
        count = sum(name.split("-")[0] == base for name in names)
        names.append(f"{base}-{count + 1}" if count else base)
    return names
