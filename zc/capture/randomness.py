"""Make randomness explicit: every random op becomes arithmetic on ``zc::uniform(seed, offset)``.

before:  %native_dropout: (f32[8], bool[8]) = aten.native_dropout(%x, 0.1, True)
after:   %uniform: f32[8] = zc.uniform(%seed, 0, [8], f32, cpu)
         %gt: bool[8] = aten.gt.Scalar(%uniform, 0.1)
         %mul: f32[8] = aten.mul.Tensor(%x, %gt)
         %mul_1: f32[8] = aten.mul.Tensor(%mul, 1.1111111111111112)
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from zc.capture.random_ops import MICRO_SEED, NORMAL, RANDINT, UNIFORM
from zc.errors import CaptureError
from zc.program.analysis import is_random
from zc.program.edit import Editor, erase_dead
from zc.program.loops import Loop, loop_by_node
from zc.program.nodes import set_input, tensors_of, value_of
from zc.program.printer import print_node
from zc.program.program import Program
from zc.program.stamps import Stamp, set_stamp, stamp_of
from zc.program.tables import Input, State

aten: Any = torch.ops.aten
SEED = "seed"


@dataclass
class _Draw:
    """One random node being rewritten: where to insert, its seed and its number."""

    edit: Editor
    node: fx.Node
    seed: fx.Node
    offset: int

    def call(self, op: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self.edit.call(op, *args, **kwargs)

    @property
    def given(self) -> dict[str, Any]:
        """The node's arguments by name."""
        names = [a.name for a in self.node.target._schema.arguments]  # type: ignore[union-attr]
        return dict(zip(names, self.node.args, strict=False)) | dict(self.node.kwargs)

    def numbers(self, op: Any, *bounds: Any) -> fx.Node:
        """Draw numbers of the size of the node's result, in its dtype where that is a float."""
        wanted = tensors_of(self.node)[0]
        real = wanted.dtype.is_floating_point or op is RANDINT
        dtype = wanted.dtype if real else torch.float32
        return self._draw(op, *bounds, dtype)

    def chances(self) -> fx.Node:
        """Uniform numbers to compare with a probability: those of bf16 come in steps of 1/256."""
        dtype = tensors_of(self.node)[0].dtype
        return self._draw(UNIFORM, torch.float64 if dtype == torch.float64 else torch.float32)

    def _draw(self, op: Any, *bounds_and_dtype: Any) -> fx.Node:
        *bounds, dtype = bounds_and_dtype
        device = tensors_of(self.node)[0].device
        return self.call(op, self.seed, self.offset, *bounds, self._size(), dtype, device)

    def _size(self) -> list[Any]:
        if "size" in self.given:
            return self.given["size"]
        source: Any = self.node.args[0]
        return [
            size if isinstance(size, int) else self.call(aten.sym_size.int, source, i)
            for i, size in enumerate(value_of(source).shape)
        ]


def make_explicit(program: Program) -> None:
    """Rewrite all random nodes of ``program`` in place; no seed is added when there are none.

    What stands in a loop over micro-batches draws anew at each turn.

    Raises:
        CaptureError: for a random op that has no such form; the message names it and its source
        line.
    """
    random = [n for n in program.graph.nodes if is_random(n)]
    if not random:
        return
    edit = Editor(program, program.graph, made_by="capture")
    seeds = _Seeds(edit, loop_by_node(program.graph), _seed_input(program))
    for offset, node in enumerate(random):
        rewrite = _REWRITES.get(node.target)
        if rewrite is None:
            raise CaptureError(
                f"random op in {print_node(node)} ({stamp_of(node).source or 'no source line'}) "
                f"cannot be reproduced from a seed; draw these numbers outside the compiled "
                f"function and pass them in, or write them with torch.rand, randn, randint or "
                f"dropout"
            )
        with edit.before(node, recompute=stamp_of(node).recompute):
            rewrite(_Draw(edit, node, seeds.of(node), offset))
        erase_dead(program.graph, [node])


@dataclass
class _Seeds:
    """The seed of the program, and one that differs from turn to turn for each loop."""

    edit: Editor
    loops: dict[fx.Node, Loop]
    outside: fx.Node
    inside: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def of(self, node: fx.Node) -> fx.Node:
        """The seed that ``node`` draws from."""
        if node not in self.loops:
            return self.outside
        begin = self.loops[node].begin
        if begin not in self.inside:
            with self.edit.after(begin):
                self.inside[begin] = self.edit.call(MICRO_SEED, self.outside, begin)
        return self.inside[begin]


def _seed_input(program: Program) -> fx.Node:
    program.state[SEED] = State(SEED, "seed", (), torch.int64, checkpoint="rebuild")
    last = program.placeholders()[-1] if program.placeholders() else None
    graph = program.graph
    point = graph.inserting_after(last) if last else graph.inserting_before(next(iter(graph.nodes)))
    with point:
        seed = graph.placeholder(SEED)
    with program.fake_mode:
        seed.meta["val"] = torch.empty((), dtype=torch.int64)
    set_input(seed, Input("state", SEED))
    set_stamp(seed, Stamp())
    return seed


def _dropout(draw: _Draw) -> None:
    source, p = draw.given["input"], draw.given["p"]
    results: list[Any] = [source, None]
    if draw.given.get("train") is not False and p:
        keep = draw.call(aten.ge.Scalar, draw.chances(), p)
        scale = 0.0 if p == 1 else 1.0 / (1.0 - p)
        kept = draw.call(aten.mul.Tensor, source, keep)
        results = [draw.call(aten.mul.Tensor, kept, scale), keep]
    elif any(user.args[1] == 1 for user in draw.node.users):
        results[1] = draw.call(aten.ones_like.default, source, dtype=torch.bool)
    for item in list(draw.node.users):
        item.replace_all_uses_with(results[item.args[1]])  # type: ignore[index]
        draw.node.graph.erase_node(item)


def _bernoulli(draw: _Draw) -> None:
    uniform = draw.chances()
    if "p" in draw.given:
        below = draw.call(aten.lt.Scalar, uniform, draw.given["p"])
    else:
        below = draw.call(aten.lt.Tensor, uniform, draw.given["self"])
    _finish(draw, below)


def _uniform(draw: _Draw) -> None:
    value, given = draw.numbers(UNIFORM), draw.given
    low, high = given.get("from", 0.0), given.get("to", 1.0)
    if (low, high) != (0.0, 1.0):
        value = draw.call(aten.mul.Tensor, value, high - low)
        value = draw.call(aten.add.Tensor, value, low)
    _finish(draw, value)


def _normal(draw: _Draw) -> None:
    value, given = draw.numbers(NORMAL), draw.given
    mean, std = given.get("mean", 0.0), given.get("std", 1.0)
    if (mean, std) != (0.0, 1.0):
        value = draw.call(aten.mul.Tensor, value, std)
        value = draw.call(aten.add.Tensor, value, mean)
    _finish(draw, value)


def _randint(draw: _Draw) -> None:
    _finish(draw, draw.numbers(RANDINT, draw.given.get("low", 0), draw.given["high"]))


def _finish(draw: _Draw, value: fx.Node) -> None:
    wanted = value_of(draw.node)
    if value_of(value).dtype != wanted.dtype:
        value = draw.call(aten._to_copy.default, value, dtype=wanted.dtype)
    draw.node.replace_all_uses_with(value)


_REWRITES: dict[Any, Callable[[_Draw], None]] = {
    aten.native_dropout.default: _dropout,
    aten.bernoulli.p: _bernoulli,
    aten.bernoulli.default: _bernoulli,
    aten.rand.default: _uniform,
    aten.rand_like.default: _uniform,
    aten.uniform.default: _uniform,
    aten.randn.default: _normal,
    aten.randn_like.default: _normal,
    aten.normal_functional.default: _normal,
    aten.randint.default: _randint,
    aten.randint.low: _randint,
    aten.randint_like.default: _randint,
    aten.randint_like.low_dtype: _randint,
}
