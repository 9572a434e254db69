"""A broken program for every error of the verifier: ``BROKEN[name](program)`` breaks in place."""

from collections.abc import Callable
from dataclasses import replace
from operator import getitem
from typing import Any

import torch
from torch import fx
from tracing import physical, program_of
from verify import changes, places
from verify.mutations import VERIFIED

from zc.program.collectives import C10D, WAIT
from zc.program.edit import Editor
from zc.program.nodes import input_of, set_input
from zc.program.program import Program
from zc.program.stamps import restamp
from zc.program.tables import Input, Output, State
from zc.program.types import derive

aten: Any = torch.ops.aten
Break = Callable[[Program], None]


def tiny() -> Program:
    """Two parameters on two ranks, one square, stage 3."""

    def loss(p: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
        return ((x["x"] @ p["w"]) @ p["v"]).sum()

    shapes = {"w": (8, 8), "v": (8, 8)}
    return physical(program_of(loss, shapes, {"x": (2, 8)}, world=2))


def node(program: Program, name: str) -> fx.Node:
    return next(n for n in program.nodes() if n.name == name)


def first(program: Program, target: Any) -> fx.Node:
    return program.graph.find_nodes(op="call_function", target=target)[0]


def at(name: str, position: int = 0) -> Break:
    """The mutation called ``name``, at one of its places."""
    mutation = VERIFIED[name]

    def apply(program: Program) -> None:
        mutation.apply(program, mutation.places(program)[position])

    return apply


def insert(program: Program, before: fx.Node, target: Any, *args: Any, **stamp: Any) -> fx.Node:
    edit = Editor(program, program.graph, "mutation")
    with edit.before(before, **stamp):
        return edit.call(target, *args)


def call_a_method(program: Program) -> None:
    with program.graph.inserting_before(program.output_node()):
        program.graph.call_method("sum", (program.placeholders()[0],))


def return_early(program: Program) -> None:
    mm = first(program, aten.mm.default)
    mm.prepend(program.output_node())
    program.output_node().args = ([],)


def call_no_function(program: Program) -> None:
    first(program, aten.mm.default).target = "nonsense"


def return_nothing(program: Program) -> None:
    program.graph.erase_node(program.output_node())


def unknown_phase(program: Program) -> None:
    restamp(first(program, aten.mm.default), phase="middle")


def unbind(program: Program) -> None:
    del program.placeholders()[0].meta["zc_input"]


def share_position(program: Program) -> None:
    for placeholder in program.placeholders()[:2]:
        set_input(placeholder, replace(input_of(placeholder), index=0))


def unknown_parameter(program: Program) -> None:
    set_input(program.placeholders()[0], Input("param", "lost", 0))


def unknown_state(program: Program) -> None:
    set_input(program.placeholders()[2], Input("state", "seed"))


def return_loss_as_gradient(program: Program) -> None:
    values = program.output_values()
    program.output_node().args = ([values[0], values[0], values[2]],)


def return_one_value(program: Program) -> None:
    program.output_node().args = (program.output_values()[0],)


def unknown_gradient(program: Program) -> None:
    program.outputs[1] = Output("grad", "lost", "backward")


def read_a_tangent(program: Program) -> None:
    set_input(program.placeholders()[2], Input("tangent", "", 2))


def return_backward_first(program: Program) -> None:
    program.level, program.forward_outputs = 1, 2


def take_a_missing_item(program: Program) -> None:
    mm = first(program, aten.mm.default)
    rows = insert(program, mm, aten.split.Tensor, mm.args[0], 1)
    insert(program, mm, getitem, rows, 0).args = (rows, 7)


def refuse_operands(program: Program) -> None:
    mm = first(program, aten.mm.default)
    mm.args = (mm.args[0], mm.args[0])


def mix_dtypes(program: Program) -> None:
    mm = first(program, aten.mm.default)
    mm.replace_input_with(mm.args[1], insert(program, mm, aten.to.dtype, mm.args[1], torch.float64))  # type: ignore[arg-type]


def share_a_stranger(program: Program) -> None:
    one, two = program.graph.find_nodes(op="call_function", target=aten.mm.default)[:2]
    two.meta["val"] = one.meta["val"]


def broadcast(program: Program) -> None:
    mm = first(program, aten.mm.default)
    insert(program, mm, torch.ops._c10d_functional.broadcast.default, mm.args[0], 0, "dp")


def strided_operand(program: Program) -> None:
    gather = places.collectives(program)[0]
    (shard,) = gather.all_input_nodes
    turned = insert(program, gather, aten.as_strided.default, shard, [4, 8], [1, 4])
    gather.replace_input_with(shard, turned)


def odd_rows(program: Program) -> None:
    mm = first(program, aten.mm.default)
    fewer = insert(program, mm, aten.slice.Tensor, mm.args[1], 0, 0, 7)
    target = C10D.reduce_scatter_tensor.default
    insert(program, mm, WAIT, insert(program, mm, target, fewer, "sum", 2, "dp"))


def gather_without_a_wait(program: Program) -> None:
    gather = places.collectives(program)[0]
    insert(program, gather, gather.target, *gather.args)


def coalesced(program: Program) -> tuple[fx.Node, fx.Node]:
    shards = program.placeholders("param")
    before = places.collectives(program)[0]
    target = C10D.all_gather_into_tensor_coalesced.default
    return insert(program, before, target, shards, 2, "dp"), before


def read_coalesced_early(program: Program) -> None:
    many, before = coalesced(program)
    cat = insert(program, before, aten.cat.default, [program.placeholders()[0]])
    cat.args = (many,)
    cat.meta["val"] = derive(cat, program.fake_mode)


def take_an_item_twice(program: Program) -> None:
    many, before = coalesced(program)
    for _ in range(2):
        insert(program, before, WAIT, insert(program, before, getitem, many, 0))


def forget_an_item(program: Program) -> None:
    many, before = coalesced(program)
    insert(program, before, WAIT, insert(program, before, getitem, many, 0))


def gather_too_much(program: Program) -> None:
    """Gather in 64 bits, cast behind the wait."""
    wait = places.waits_of("gather")(program)[0]
    gather = places.start_of(wait)
    (shard,) = gather.all_input_nodes
    gather.replace_input_with(shard, insert(program, gather, aten.to.dtype, shard, torch.float64))
    cast = changes.insert_behind(program, wait, aten.to.dtype, wait, torch.float32)
    wait.replace_all_uses_with(cast, delete_user_cb=lambda user: user is not cast)
    for name in (gather, wait, cast):
        name.meta["val"] = derive(name, program.fake_mode)


def read_the_shard(program: Program) -> None:
    mm = first(program, aten.mm.default)
    total = insert(program, mm, aten.sum.default, program.placeholders()[0])
    restamp(total, made_by="capture")
    (loss, *_) = program.output_values()
    output = program.output_node()
    output.replace_input_with(loss, total)  # type: ignore[arg-type]


def update_from_own_batch(program: Program) -> None:
    output = program.output_node()
    loss: Any = program.output_values()[0]
    shard = program.placeholders("param")[0]
    stepped = insert(program, output, aten.add.Tensor, shard, loss, phase="update")
    insert(program, output, aten.copy_.default, shard, stepped, phase="update")


def write_state_twice(program: Program) -> None:
    program.state["seed"] = State("seed", "seed", (2, 8), torch.float32)
    seed = program.placeholders()[2]
    set_input(seed, Input("state", "seed"))
    for _ in range(2):
        insert(program, program.output_node(), aten.zero_.default, seed)


BROKEN: dict[str, Break] = {
    "structure: read before defined": at("swap_with_operand"),
    "structure: method": call_a_method,
    "structure: early return": return_early,
    "structure: no function": call_no_function,
    "structure: no stamp": at("drop_stamp"),
    "structure: no phase": unknown_phase,
    "structure: no return": return_nothing,
    "structure: unbound input": unbind,
    "structure: shared position": share_position,
    "structure: bound twice": at("bind_twice", position=1),
    "structure: unknown parameter": unknown_parameter,
    "structure: unknown state": unknown_state,
    "structure: wrong type at rest": return_loss_as_gradient,
    "structure: one output too few": at("drop_output"),
    "structure: no list": return_one_value,
    "structure: unknown gradient": unknown_gradient,
    "phases: forward reads backward": at("change_phase"),
    "phases: forward reads a tangent": read_a_tangent,
    "phases: forward returns backward": return_backward_first,
    "randomness: hidden generator": at("hidden_random"),
    "types: other type": at("change_stored_dtype"),
    "types: none": at("drop_type"),
    "types: missing item": take_a_missing_item,
    "types: refused operands": refuse_operands,
    "types: two dtypes": mix_dtypes,
    "types: forgotten alias": at("forget_alias"),
    "types: stranger's storage": share_a_stranger,
    "collectives: not in the table": broadcast,
    "collectives: unknown axis": at("wrong_axis"),
    "collectives: strided operand": strided_operand,
    "collectives: never waited for": gather_without_a_wait,
    "collectives: one item never waited for": forget_an_item,
    "collectives: read without a wait": at("drop_wait"),
    "collectives: item taken twice": take_an_item_twice,
    "collectives: coalesced read without a wait": read_coalesced_early,
    "collectives: two waits": at("double_wait"),
    "collectives: wait for a value": at("wait_for_a_wait"),
    "collectives: written in flight": at("write_operand_in_flight"),
    "collectives: odd rows": odd_rows,
    "collectives: group size": at("wrong_group_size"),
    "gathers: too many bytes": gather_too_much,
    "gathers: other parameter": at("wrong_parameter"),
    "gathers: for nothing": at("gather_for_nothing"),
    "ranks: shard read as whole": read_the_shard,
    "ranks: reduced twice": at("double_reduction"),
    "ranks: never reduced": at("drop_reduction"),
    "ranks: gradients swapped": at("swap_gradients"),
    "ranks: written unreduced": update_from_own_batch,
    "writes: twice": write_state_twice,
    "writes: read afterwards": at("release_early"),
    "residency: kept from forward": at("keep_gathered"),
    "memory: above the cap": at("lower_cap"),
}
