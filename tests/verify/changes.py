"""What mutations do to a program at one node: each breaks one thing."""

from dataclasses import replace
from typing import Any

import torch
from torch import fx
from verify.places import (
    SIZE_ARGUMENT,
    collectives,
    last_user,
    start_of,
    twin_of,
    waits_of,
)

from zc.program.collectives import C10D, COLLECTIVES, WAIT, is_wait
from zc.program.edit import Editor, replace_uses
from zc.program.liveness import peak_bytes
from zc.program.nodes import input_of, set_input, value_of
from zc.program.program import Program
from zc.program.retype import retype
from zc.program.stamps import restamp, stamp_of

aten: Any = torch.ops.aten


def drop_wait(program: Program, wait: fx.Node) -> None:
    wait.replace_all_uses_with(start_of(wait))
    program.graph.erase_node(wait)


def double_wait(program: Program, wait: fx.Node) -> None:
    again = insert_behind(program, wait, WAIT, start_of(wait))
    last_user(wait).replace_input_with(wait, again)


def wait_for_a_wait(program: Program, wait: fx.Node) -> None:
    again = insert_behind(program, wait, WAIT, wait)
    replace_uses(wait, again)


def drop_gather(program: Program, wait: fx.Node) -> None:
    """Read the shard as if it were the parameter, with types as they were."""
    erase_collective(program, wait, start_of(wait).args[0])


def drop_gather_and_repeat(program: Program, wait: fx.Node) -> None:
    """Concatenate copies of the own shard: all types are right, the values are not."""
    shard: Any = start_of(wait).args[0]
    edit = Editor(program, program.graph, "mutation")
    repeats = [4] + [1] * (value_of(shard).ndim - 1)
    with edit.before(wait):
        fake = edit.call(aten.repeat.default, shard, repeats)
    erase_collective(program, wait, fake)
    retype(program, program.graph)


def drop_reduction(program: Program, wait: fx.Node) -> None:
    """Take the own block of the own gradient: all types are right, the values are not."""
    full: Any = start_of(wait).args[0]
    rows = value_of(wait).shape[0]
    edit = Editor(program, program.graph, "mutation")
    with edit.before(wait):
        block = edit.call(aten.slice.Tensor, full, 0, 0, rows)
    erase_collective(program, wait, block)
    retype(program, program.graph)


def double_reduction(program: Program, wait: fx.Node) -> None:
    edit = Editor(program, program.graph, "mutation")
    with edit.after(wait, param=stamp_of(wait).param):
        start = edit.call(C10D.all_reduce.default, wait, "avg", "dp")
        again = edit.call(WAIT, start)
    replace_uses(wait, again, keep=(start,))


def release_early(program: Program, wait: fx.Node) -> None:
    """Reuse the storage of a gathered value before its last reader."""
    edit = Editor(program, program.graph, "mutation")
    with edit.before(last_user(wait)):
        edit.call(aten.zero_.default, wait)


def write_operand_in_flight(program: Program, start: fx.Node) -> None:
    edit = Editor(program, program.graph, "mutation")
    with edit.after(start):
        edit.call(aten.zero_.default, start.args[0])


def write_twice(program: Program, write: fx.Node) -> None:
    edit = Editor(program, program.graph, "mutation")
    with edit.after(write):
        doubled = edit.call(aten.add.Tensor, write, write)
        edit.call(aten.copy_.default, write.args[0], doubled)


def read_after_write(program: Program, write: fx.Node) -> None:
    edit = Editor(program, program.graph, "mutation")
    output = program.output_node()
    loss: Any = program.output_values()[0]
    with edit.after(write):
        total = edit.call(aten.sum.default, write.args[0])
        changed = edit.call(aten.add.Tensor, loss, total)
    output.replace_input_with(loss, changed)


def change_stored_dtype(program: Program, node: fx.Node) -> None:
    del program
    value = value_of(node)
    other = torch.float16 if value.dtype != torch.float16 else torch.float32
    with value.fake_mode:
        node.meta["val"] = torch.empty_strided(value.shape, value.stride(), dtype=other)


def change_stored_shape(program: Program, node: fx.Node) -> None:
    del program
    value = value_of(node)
    with value.fake_mode:
        node.meta["val"] = torch.empty((*value.shape, 2), dtype=value.dtype)


def cast_without_types(program: Program, node: fx.Node) -> None:
    """Insert a cast before all readers and leave their types as they were."""
    edit = Editor(program, program.graph, "mutation")
    other = torch.float64 if value_of(node).is_floating_point() else torch.int32
    with edit.after(node):
        cast = edit.call(aten._to_copy.default, node, dtype=other)
    replace_uses(node, cast)


def forget_alias(program: Program, view: fx.Node) -> None:
    del program
    value = value_of(view)
    with value.fake_mode:
        view.meta["val"] = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)


def wrong_group_size(program: Program, start: fx.Node) -> None:
    del program
    args = list(start.args)
    args[SIZE_ARGUMENT[start.target]] = 8
    start.args = tuple(args)


def wrong_axis(program: Program, start: fx.Node) -> None:
    del program
    args = list(start.args)
    args[COLLECTIVES[start.target].axis_arg] = "tp"
    start.args = tuple(args)


def wrong_parameter(program: Program, wait: fx.Node) -> None:
    start = start_of(wait)
    twin = twin_of(program, start)
    assert twin is not None
    start.replace_input_with(start.all_input_nodes[0], twin)


def keep_gathered(program: Program, wait: fx.Node) -> None:
    """Let backward read what forward gathered."""
    name = stamp_of(wait).param
    first = next(n for n in waits_of("gather")(program) if stamp_of(n).param == name)
    erase_collective(program, wait, first)
    retype(program, program.graph)


def change_phase(program: Program, node: fx.Node) -> None:
    del program
    restamp(node, phase="backward")


def swap_with_operand(program: Program, node: fx.Node) -> None:
    del program
    node.prev.prepend(node)


def swap_gradients(program: Program, value: fx.Node) -> None:
    """Return the gradient of another parameter in place of this one, and the reverse."""
    output = program.output_node()
    values: list[Any] = list(output.args[0])  # type: ignore[arg-type]
    mine = values.index(value)
    other = mine + 1 if mine + 1 < len(values) else mine - 1
    if program.outputs[other].kind != "grad":
        other = mine - 1
    values[mine], values[other] = values[other], values[mine]
    output.args = (values,)


def drop_output(program: Program, output: fx.Node) -> None:
    del program
    output.args = (list(output.args[0])[:-1],)  # type: ignore[arg-type]


def drop_stamp(program: Program, node: fx.Node) -> None:
    del program
    del node.meta["zc"]


def drop_maker(program: Program, node: fx.Node) -> None:
    del program
    restamp(node, made_by="")


def drop_type(program: Program, node: fx.Node) -> None:
    del program
    del node.meta["val"]


def bind_twice(program: Program, node: fx.Node) -> None:
    first = program.placeholders("param")[0]
    if first is node:
        first = program.placeholders("param")[1]
    set_input(node, replace(input_of(node), subject=input_of(first).subject))


def gather_for_nothing(program: Program, wait: fx.Node) -> None:
    edit = Editor(program, program.graph, "mutation")
    start = start_of(wait)
    with edit.after(wait, param=stamp_of(wait).param):
        again = edit.call(start.target, *start.args)
        edit.call(WAIT, again)


def hidden_random(program: Program, node: fx.Node) -> None:
    edit = Editor(program, program.graph, "mutation")
    with edit.after(node):
        noise = edit.call(aten.rand_like.default, node)
    replace_uses(node, noise)


def lower_cap(program: Program, output: fx.Node) -> None:
    program.cap_bytes = peak_bytes(output.graph) - 1


def overtake(program: Program, later: fx.Node) -> None:
    starts = collectives(program)
    starts[starts.index(later) - 1].prepend(later)


def skip_collective(program: Program, start: fx.Node) -> None:
    (wait,) = [n for n in start.users if is_wait(n)]
    wait.replace_all_uses_with(start.all_input_nodes[0])
    program.graph.erase_node(wait)
    program.graph.erase_node(start)


def insert_behind(program: Program, node: fx.Node, target: Any, *args: Any) -> fx.Node:
    edit = Editor(program, program.graph, "mutation")
    with edit.after(node, param=stamp_of(node).param):
        return edit.call(target, *args)


def erase_collective(program: Program, wait: fx.Node, instead: Any) -> None:
    start = start_of(wait)
    wait.replace_all_uses_with(instead)
    program.graph.erase_node(wait)
    if not start.users:
        program.graph.erase_node(start)
