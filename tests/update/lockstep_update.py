"""One optimizer step on simulated ranks, without Dynamo: a program with nothing but the update.

ranks = SimulatedRanks(world, [torch.randn(5, 3)], lambda params: torch.optim.AdamW(params))
ranks.step([gradient])              # traces, shards, verifies, runs on all ranks
ranks.params()                      # whole again
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from update.optimizers import Make
from zc.passes.shard_update import ShardUpdate

from zc import torch_private
from zc.program.layout import Layout, choose_layout
from zc.program.mesh import Mesh
from zc.program.nodes import input_of, set_input
from zc.program.packing import pack, run_op, unpack
from zc.program.program import Program
from zc.program.stamps import Stamp, set_stamp
from zc.program.tables import Input, Param
from zc.program.updates import ROUNDING_STEP, keep_number
from zc.run.lockstep import lockstep
from zc.state.step import UPDATE
from zc.update.classes import Held, TracedUpdate, trace_update
from zc.update.trace import like, numbers_of
from zc.verify import verify

AXIS = "dp"


class SimulatedRanks:
    """Whole parameters and optimizer state, cut up for each step and put together behind it."""

    def __init__(self, world: int, values: Sequence[torch.Tensor], make: Make) -> None:
        self.world = world
        self.whole = [torch.nn.Parameter(value.clone()) for value in values]
        self.optimizer = make(self.whole)
        self.traces = 0
        self.layouts = {
            f"p{i}": choose_layout(tuple(v.shape), world, AXIS, v.dtype.itemsize)
            for i, v in enumerate(values)
        }

    @torch.no_grad()
    def step(self, grads: Sequence[torch.Tensor]) -> Program:
        """Step every parameter from its whole gradient; returns the program that did it."""
        program, traced = self.program()
        by_rank = [[self._input(program, traced, n, r, grads) for n in program.placeholders()]
                   for r in range(self.world)]  # fmt: skip
        self._begin(traced)
        kept = program.graph.find_nodes(op="call_function", target=keep_number)
        program.output_node().args = (kept,)
        numbers = lockstep(program, by_rank)[0]
        for position, node in enumerate(program.placeholders()):
            self._take_back(program, traced, node, [inputs[position] for inputs in by_rank])
        for node, number in zip(kept, numbers, strict=True):
            kind, key, name = self._find(traced, node.args[1])
            if kind is None:
                self.optimizer.param_groups[int(name)][key] = number
                continue
            for name in traced.update.family_names(kind):
                self.optimizer.state[self._param(name)][key] = number
        return program

    def program(self) -> tuple[Program, TracedUpdate]:
        """The physical program of the next step, verified, and the trace it was made from."""
        program, traced = self.logical()
        ShardUpdate().run(program)
        verify(program, full=True)
        return program, traced

    def logical(self) -> tuple[Program, TracedUpdate]:
        """The program before ``shard_update``: inputs and the marker."""
        mode = torch_private.fake_mode_of([])
        program = _empty_program(self.layouts, self.whole, mode)
        held = [
            Held(f"p{i}", p, self._group(p), like(p, mode), like(p, mode))
            for i, p in enumerate(self.whole)
        ]
        traced = trace_update(self.optimizer, "opt", held, mode)
        program.updates = [traced.update]
        return program, traced

    def _group(self, param: torch.Tensor) -> int:
        groups = self.optimizer.param_groups
        return next(i for i, g in enumerate(groups) if any(p is param for p in g["params"]))

    def _begin(self, traced: TracedUpdate) -> None:
        """State that starts with this step: unread entries appear as the first step makes them."""
        for kind, initial in zip(traced.update.classes, traced.initial, strict=True):
            for name in kind.names():
                entries = self.optimizer.state[self._param(name)]
                for key in initial or {}:
                    entries.setdefault(key, self._start(traced, name, key))

    def _start(self, traced: TracedUpdate, name: str, key: str) -> Any:
        kinds = zip(traced.update.classes, traced.initial, strict=True)
        initial = next(i for kind, i in kinds if name in kind.names())
        assert initial is not None
        begun = initial[key]
        if not torch_private.is_fake(begun.type):
            return begun.type.clone() if isinstance(begun.type, torch.Tensor) else begun.type
        if begun.fill is None:
            return self._param(name).detach().clone()
        return torch.full(begun.type.shape, begun.fill, dtype=begun.type.dtype)

    def _param(self, name: str) -> torch.nn.Parameter:
        return self.whole[int(name[1:])]

    def _input(
        self, program: Program, traced: TracedUpdate, node: fx.Node, rank: int, grads: Any
    ) -> Any:
        info = input_of(node)
        if info.kind == "param":
            return block(self._param(info.subject).detach(), self.layouts[info.subject], rank)
        if info.kind == "grad":
            return block(grads[int(info.subject[1:])], self.layouts[info.subject], rank)
        value, layout = self._state(program, traced, info.subject, node)
        return block(value, layout, rank) if isinstance(value, torch.Tensor) else value

    def _state(
        self, program: Program, traced: TracedUpdate, entry: str, node: fx.Node
    ) -> tuple[Any, Layout]:
        """The present whole value of a state entry, and how it lies."""
        kind, key, name = self._find(traced, entry)
        if kind is None:
            group = int(name)
            number = numbers_of(self.optimizer.param_groups[group] | self._counted(key, group))[key]
            return number, Layout(AXIS, self.world, (), None)
        entries = self.optimizer.state.get(self._param(name), {})
        if key in entries:
            value = entries[key]
        elif any(i is not None and key in i for i in traced.initial):
            value = self._start(traced, name, key)
        else:  # the body makes it
            shape = program.state[entry].shape
            layout = Layout(AXIS, self.world, shape, None)
            return torch.zeros(shape, dtype=program.state[entry].dtype), layout
        if program.state[entry].kind == "step" and isinstance(value, torch.Tensor):
            value = value.detach().repeat(program.state[entry].shape)
        mine = self.layouts[name]
        shape = tuple(value.shape) if isinstance(value, torch.Tensor) else ()
        return value, mine if shape == mine.shape else Layout(AXIS, self.world, shape, None)

    def _counted(self, key: str, group: int) -> dict[str, float]:
        """The count of steps that round, which passes add to the first group."""
        counts = self.optimizer.param_groups[group]
        return {key: counts.get(key, 0.0)} if key == ROUNDING_STEP else {}

    def _find(self, traced: TracedUpdate, entry: str) -> tuple[Any, str, str]:
        """Class, key and first parameter of an entry; for a number key and group."""
        update = traced.update
        if entry == update.rounding_step:
            return None, ROUNDING_STEP, "0"
        for kind in update.classes:
            for slot in {*kind.body.inputs, *kind.body.writes}:
                if slot.role == "group" and update.number_name(slot.key, kind.group) == entry:
                    return None, slot.key, str(kind.group)
                if slot.on_host and update.shared_name(slot.key, kind) == entry:
                    return kind, slot.key, kind.names()[0]
                for name in kind.names():
                    if slot.role == "state" and update.state_name(slot.key, name) == entry:
                        return kind, slot.key, name
        raise KeyError(entry)

    def _take_back(
        self, program: Program, traced: TracedUpdate, node: fx.Node, blocks: list[Any]
    ) -> None:
        info = input_of(node)
        if info.kind == "param":
            layout = self.layouts[info.subject]
            self._param(info.subject).copy_(whole(blocks, layout))
        elif info.kind == "state":
            kind, key, name = self._find(traced, info.subject)
            if kind is None or not isinstance(blocks[0], torch.Tensor):
                return
            if program.state[info.subject].kind == "step":
                for i, each in enumerate(traced.update.family_names(kind)):
                    self.optimizer.state[self._param(each)][key] = blocks[0][i].clone()
                return
            mine = self.layouts[name]
            alike = program.state[info.subject].shape == mine.storage_shape and not mine.replicated
            value = whole(blocks, mine) if alike else blocks[0].clone()
            self.optimizer.state[self._param(name)][key] = value


def block(value: torch.Tensor, layout: Layout, rank: int) -> torch.Tensor:
    """What one rank stores of ``value``."""
    if layout.replicated:
        return value.detach().clone()
    packed = pack(run_op, value.detach(), layout, contiguous=value.is_contiguous())
    return packed.chunk(layout.world)[rank].clone()


def whole(blocks: Sequence[torch.Tensor], layout: Layout) -> torch.Tensor:
    """``block``, the other way round."""
    return (
        blocks[0].clone() if layout.replicated else unpack(run_op, torch.cat(list(blocks)), layout)
    )


def _empty_program(
    layouts: dict[str, Layout], params: Sequence[torch.Tensor], mode: Any
) -> Program:
    graph = fx.Graph()
    table, inputs, grads = {}, [], []
    for i, ((name, layout), param) in enumerate(zip(layouts.items(), params, strict=True)):
        dtype = param.dtype
        table[name] = Param(name, i, layout.shape, dtype, dtype, dtype, {AXIS: layout})
        for kind, found in (("param", inputs), ("grad", grads)):
            node = graph.placeholder(name if kind == "param" else f"{name}_grad")
            own = (
                param.detach()
                if layout.replicated
                else torch.empty(layout.storage_shape, dtype=dtype)
            )
            node.meta["val"] = like(own, mode)
            position = 2 * i + (kind == "grad")
            set_input(node, Input(kind, name, position))  # type: ignore[arg-type]
            set_stamp(node, Stamp())
            found.append(node)
    marker = graph.call_function(UPDATE, (inputs, grads, 0))
    set_stamp(marker, Stamp(phase="update"))
    graph.output([])
    (layout, *_) = layouts.values()
    return Program("step", 2, Mesh(((AXIS, layout.world),)), {"step": graph}, [], table,
                   fake_mode=mode)  # fmt: skip
