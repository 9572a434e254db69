"""Optimizer steps with state in 8 bits on simulated ranks, as ``update.lockstep_update``."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from update.lockstep_update import SimulatedRanks, block, whole
from update.optimizers import Make
from zc.codegen.blockwise import dequantize, quantize
from zc.passes.lower_update import LowerUpdate
from zc.passes.quantize_moments import QuantizeMoments

from zc.program.layout import Layout
from zc.program.nodes import input_of
from zc.program.program import Program
from zc.verify import verify


class QuantizedRanks(SimulatedRanks):
    """Simulated ranks that keep codes and scales between steps, each its own.

    ``optimizer.state`` has the dequantised state, for comparison only.
    """

    def __init__(
        self,
        world: int,
        values: Sequence[torch.Tensor],
        make: Make,
        options: QuantizeMoments | None = None,
        *,
        lower: bool = False,
    ) -> None:
        super().__init__(world, values, make)
        self.options = options or QuantizeMoments(smallest=1)
        self.lower = lower
        self.kept: dict[str, list[torch.Tensor]] = {}

    def program(self) -> tuple[Program, Any]:
        program, traced = super().program()
        self.options.run(program)
        verify(program, full=True)
        if self.lower:
            LowerUpdate(target="eager").run(program)
            verify(program, full=True)
        return program, traced

    def _input(self, program: Program, traced: Any, node: fx.Node, rank: int, grads: Any) -> Any:
        subject = input_of(node).subject
        entry, _, part = subject.rpartition(".")
        if input_of(node).kind != "state" or part not in ("codes", "scales"):
            return super()._input(program, traced, node, rank, grads)
        if subject not in self.kept:
            how = program.state[f"{entry}.codes"].quantized
            assert how is not None
            start, layout = self._begun(traced, entry)
            pairs = [
                quantize(block(start, layout, r), how.block, how.signed) for r in range(self.world)
            ]
            self.kept[f"{entry}.codes"] = [codes for codes, _ in pairs]
            self.kept[f"{entry}.scales"] = [scales for _, scales in pairs]
        return self.kept[subject][rank]

    def _begun(self, traced: Any, entry: str) -> tuple[torch.Tensor, Layout]:
        _, key, name = self._find(traced, entry)
        entries = self.optimizer.state.get(self._param(name), {})
        made = not any(i is not None and key in i for i in traced.initial)
        if key in entries:
            value = entries[key]
        else:
            value = torch.zeros_like(self._param(name)) if made else self._start(traced, name, key)
        return value, self.layouts[name]

    def _take_back(self, program: Program, traced: Any, node: fx.Node, blocks: list[Any]) -> None:
        entry, _, part = input_of(node).subject.rpartition(".")
        if part == "codes":
            how = program.state[f"{entry}.codes"].quantized
            assert how is not None
            _, key, name = self._find(traced, entry)
            pairs = zip(blocks, self.kept[f"{entry}.scales"], strict=True)
            numbers = [dequantize(c, s, how.block, how.signed).to(how.dtype) for c, s in pairs]
            self.optimizer.state[self._param(name)][key] = whole(numbers, self.layouts[name])
        elif part != "scales":
            super()._take_back(program, traced, node, blocks)
