"""What capture refuses, word for word, beyond what test_behaviour.py shows on two ranks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from multiprocess import fake_world
from torch.distributed import _functional_collectives as functional
from tracing import program_of

import zc
from zc.capture import build, markers_merge
from zc.errors import CaptureError
from zc.program.collectives import collectives_of
from zc.program.edit import Editor
from zc.program.mesh import Mesh
from zc.program.program import Program
from zc.state.markers import GRAD, PARAM

aten: Any = torch.ops.aten


def logical() -> Program:
    def loss(p: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
        return (x["x"] @ p["w"]).sum()

    return program_of(loss, {"w": (16, 16)}, {"x": (2, 16)})


def reads_something_else(program: Program) -> None:
    (read,) = program.graph.find_nodes(op="call_function", target=PARAM)
    edit = Editor(program, program.graph, "test")
    with edit.before(read):
        read.update_arg(0, edit.call(aten.neg.default, read.args[0]))
    markers_merge.canonicalize(program)


def gradient_of_nothing(program: Program) -> None:
    (grad,) = program.graph.find_nodes(op="call_function", target=GRAD)
    grad.update_arg(8, 99)
    markers_merge.canonicalize(program)


def another_mesh(program: Program) -> None:
    program.mesh = Mesh((("dp", 8),))
    markers_merge.canonicalize(program)


def wrong_types(program: Program) -> None:
    mm = program.graph.find_nodes(op="call_function", target=aten.mm.default)[0]
    mm.update_arg(1, mm.args[0])
    build._retype(program)


ERRORS: dict[str, tuple[Callable[[Program], None], str]] = {
    "a marker of no parameter": (
        reads_something_else,
        "marker %w_read : [num_users=1] = call_function[target=torch.ops.zc.param.default](args = "
        "(%neg, [16, 16], 0, dp, 4, torch.float32, torch.float32, 0), kwargs = {}) reads something "
        "other than a parameter; parameters must be attributes of modules that zc.shard converted",
    ),
    "a gradient of no parameter": (
        gradient_of_nothing,
        "a parameter is read, or its gradient comes out, where capture cannot tell which one it "
        "is; parameters inside torch.cond or other higher-order ops are not supported: move them "
        "outside",
    ),
    "parameters of another mesh": (
        another_mesh,
        "parameter 'w' is sharded over 4 ranks of axis 'dp', the program's mesh has dp=8; shard "
        "the whole model over one mesh",
    ),
    "types that do not fit": (
        wrong_types,
        "type of %mm: f32[2, 16] = aten.mm(%x, %x) cannot be derived: a and b must have same "
        "reduction dim, but got [2, 16] X [2, 16].; please report this with the dump of "
        "options={'dump': DIR}",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str):
    call, message = ERRORS[name]
    with pytest.raises(CaptureError) as error:
        call(logical())
    assert str(error.value) == message


def reduced(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    return functional.all_reduce(x, "sum", group) + 1


def test_a_collective_of_the_user_runs_over_an_axis():
    with fake_world(4):
        group = dist.group.WORLD
        program = zc.capture(reduced, torch.ones(4), group)
    (collective,) = collectives_of(program)
    assert (collective.axis, collective.stamp.user) == ("dp", True)


def test_a_collective_over_other_ranks_is_refused():
    with fake_world(4):
        group = dist.new_group([0, 1])
        name = group.group_name
        with pytest.raises(CaptureError) as error:
            zc.capture(reduced, torch.ones(4), group)
    line = reduced.__code__.co_firstlineno + 1
    assert str(error.value) == (
        f'%all_reduce: f32[4] = c10d.all_reduce(%arg0_1, "sum", "{name}") ({__file__}:{line}) runs '
        f"over process group '{name}', which is no mesh axis of this program; communicate over the "
        f"mesh that zc.shard was given, or outside the compiled function"
    )
