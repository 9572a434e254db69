"""Programs and devices for the passes that overlap communication with compute."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from operator import getitem
from typing import Any

import torch
from hypothesis import Phase
from hypothesis import strategies as st
from random_losses import assert_same_bits
from tracing import Shapes, physical, program_of, random_inputs
from update.optimizers import of
from update.step_programs import outcome, step_program
from zc.passes.fuse_update import FuseUpdate
from zc.passes.shard_params import ShardParams
from zc.passes.shard_update import ShardUpdate

from zc.cost.device import Device, Link
from zc.cost.simulate import simulate
from zc.cost.trial import Trial
from zc.program.collectives import WAIT
from zc.program.edit import Editor, erase_dead
from zc.program.liveness import peak_bytes
from zc.program.pass_base import Pass
from zc.program.places import Group, Places, move
from zc.program.program import Program
from zc.program.retype import retype
from zc.program.stamps import stamp_of
from zc.program.units import Bytes
from zc.run.lockstep import lockstep
from zc.verify import verify

FAR = Link(1.0, 1e30)
DEVICE = Device(
    name="toy", memory_bytes=1 << 30, memory_bandwidth=1e30, flops={"float32": 1e30},
    op_seconds=1.0, issue_seconds=0.0, ranks_per_node=8, node=Link(1.0, 1e30), network=FAR,
    host=FAR, file=FAR,
)  # fmt: skip
INPUTS: Shapes = {"x": (4, 8)}
PHASES = (Phase.explicit, Phase.generate)

seconds = st.sampled_from([0.0, 0.25, 1.0, 3.0, 10.0])
devices = st.builds(
    lambda op, latency, bandwidth, issue, interference, one_lane: replace(
        DEVICE, op_seconds=op, node=Link(latency, bandwidth, interference), issue_seconds=issue,
        one_lane=one_lane,
    ),
    seconds, seconds, st.sampled_from([1e2, 1e3, 1e30]), st.sampled_from([0.0, 0.1]),
    st.sampled_from([0.0, 0.5]), st.booleans(),
)  # fmt: skip
memories = st.sampled_from([None, Bytes(0), Bytes(300), Bytes(10**6)])
widths = st.lists(st.sampled_from([8, 16, 32]), min_size=3, max_size=4)


def chain(p: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
    """Layers one behind the other."""
    value = x["x"].to(next(iter(p.values())).dtype)
    for weight in p.values():
        value = torch.tanh(value @ weight)
    return value.sum()


def tied(p: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
    """The first weight is read by the first layer and by the last."""
    first = next(iter(p.values()))
    return chain(p, x) + torch.tanh(x["x"] @ first).square().sum()


def shapes_of(sizes: Sequence[int]) -> Shapes:
    """Weights that take 8 features through layers of ``sizes``."""
    return {f"w{i}": pair for i, pair in enumerate(zip([8, *sizes], sizes, strict=False))}


def program_on(
    device: Device, sizes: Sequence[int], zero_stage: int, fn: Any = chain, **options: Any
) -> Program:
    """Layers of ``sizes`` after ``shard_params``, to run on ``device``."""
    program = program_of(fn, shapes_of(sizes), INPUTS, **{"world": 2} | options)
    program.device = device
    return physical(program, zero_stage)


def step_on(
    device: Device, sizes: Sequence[int], zero_stage: int, *, fused: bool, fn: Any = chain
) -> Program:
    """The same with a step of AdamW, ``fused`` into backward or behind it."""
    program = step_program(fn, shapes_of(sizes), INPUTS, of("AdamW"), world=2)
    ShardParams(zero_stage=zero_stage).run(program)
    ShardUpdate().run(program)
    if fused:
        FuseUpdate().run(program)  # whether or not it helps, as nothing is known of a device yet
    program.device = device
    return program


def order(program: Program) -> list[str]:
    """Names of all nodes."""
    return [node.name for node in program.graph.nodes]


def assert_same_results(program: Program, rewrite: Callable[[Program], None]) -> None:
    """``rewrite`` leaves ``program`` valid, and changes no bit of what it returns."""
    given = random_inputs(program, INPUTS)
    before = lockstep(program, given)
    rewrite(program)
    verify(program, full=True)
    assert_same_bits(before, lockstep(program, given))


def assert_no_slower_within(
    program: Program, rewrite: Callable[[Program], None], memory: int | None
) -> None:
    """As above, in no more time and with ``memory`` bytes at most above the peak."""
    assert program.device is not None
    seconds, peak = simulate(program, program.device).seconds, peak_bytes(program.graph)
    assert_same_results(program, rewrite)
    assert simulate(program, program.device).seconds <= seconds
    if memory is not None:
        assert peak_bytes(program.graph) <= peak + memory


def assert_step_keeps_within(
    device: Device, sizes: Sequence[int], passes: Sequence[Pass], *, fused: bool, room: int
) -> None:
    """Results of a whole step stay, and its peak where a cap leaves ``room`` bytes above it."""
    before, after = (step_on(device, sizes, 3, fused=fused) for _ in range(2))
    peak = peak_bytes(after.graph)
    after.cap_bytes = peak + room
    for item in passes:
        item.run(after)
        verify(after, full=True, capped=room >= 0)
    assert peak_bytes(after.graph) <= max(peak, peak + room)
    ours, theirs = outcome(after, INPUTS), outcome(before, INPUTS)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def coalesce(program: Program, names: Sequence[str], target: Any) -> None:
    """One collective ``target`` in the place of those called ``names``, where the first stands."""
    nodes = {node.name: node for node in program.graph.nodes}
    starts = [nodes[name] for name in names]
    edit = Editor(program, program.graph, "test")
    with edit.before(starts[0]):
        operands = [start.args[0] for start in starts]
        many = edit.call(target, operands, *starts[0].args[1:], name="many")
        items = [edit.call(getitem, many, i) for i in range(len(starts))]
    for start, item in zip(starts, items, strict=True):
        (wait,) = start.users
        with edit.before(wait, param=stamp_of(wait).param):
            wait.replace_all_uses_with(edit.call(WAIT, item, name=f"{wait.name}_item"))
        erase_dead(program.graph, [wait])
    retype(program, program.graph)


def best_by_force(
    program: Program, places: Places, windows: Sequence[range], nodes: Sequence[Any], limit: int
) -> float:
    """The least seconds over all places in ``windows`` that never fall and stay within ``limit``.

    ``nodes`` move to the place; at the first place that a window of waits has they stay.
    """
    assert program.device is not None
    trial, found = Trial(program, program.device), []
    for chosen in product(*windows):
        if list(chosen) != sorted(chosen):
            continue
        groups: list[Group] = list(zip(chosen, nodes, strict=True))
        move(places, groups)
        if peak_bytes(program.graph) <= limit:
            found.append(simulate(program, program.device, fused=False).seconds)
        trial.undo()
    return min(found)
