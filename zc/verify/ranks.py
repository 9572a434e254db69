"""Ranks: gradients are reduced once, and shards are not read as if they were whole.

An abstract interpretation follows, for each value, whether it depends on this rank's own batch, how
often it was reduced on the way, and whether it still is a parameter's shard at rest. Markers of a
logical program count as the communication they stand for.
"""

from dataclasses import dataclass
from functools import lru_cache

from torch import fx

from zc.program.analysis import reads_no_values
from zc.program.collectives import COLLECTIVES, is_collective
from zc.program.lines import Line, Reading
from zc.program.nodes import input_of
from zc.program.program import Program
from zc.program.stamps import UPDATE, stamp_of
from zc.program.storages import storages_of, written_operands
from zc.state.markers import GRAD, PARAM
from zc.verify.diagnostic import refusal


@dataclass(frozen=True)
class Place:
    """What is known of one value.

    ``own`` is true when it depends on this rank's batch and differs between ranks, ``reductions``
    counts the gradient reductions on the longest way to it, ``shard`` names the parameter whose
    shard at rest it is, cast or viewed but not gathered.
    """

    own: bool = False
    reductions: int = 0
    shard: str = ""


Places = dict[fx.Node, Place]


def check(program: Program, reading: Reading) -> None:
    """Refuse gradients that are not reduced exactly once, and shards read as if they were whole.

    Raises:
        VerifyError: naming the reduction, the reader, the write or the output.
    """
    for lines in reading.values():
        stored = {
            key: input_of(node).subject
            for node, line in lines.items()
            if node.op == "placeholder" and input_of(node).kind == "param"
            for key in line.keys
        }
        places: Places = {}
        for node, line in lines.items():
            if node.op == "output":
                continue
            operands = [places[source] for source in line.sources]
            if operands and _all_as_first(operands) and _only_computes(line):
                place = places[node] = operands[0]
            else:
                place = places[node] = _place(program, line, operands)
                if any([operand.shard for operand in operands]):
                    _check_read(program, node, places)
            if place.reductions > 1:
                _check_reduction(program, node)
            if line.written and place.own and not place.reductions:
                _check_write(program, node, stored)
        if len(program.graphs) == 1:
            _check_gradients(program, places)


def _place(program: Program, line: Line, operands: list[Place]) -> Place:
    node = line.node
    if node.op == "placeholder":
        return _input_place(program, node)
    reductions = max([place.reductions for place in operands], default=0)
    if line.starts or line.target is GRAD or line.target is PARAM:
        return _place_of(False, reductions + is_gradient_reduction(node), "")
    shards = [place.shard for place in operands if place.shard]
    shard = shards[0] if shards and not reads_no_values(node) else ""
    return _place_of(any([place.own for place in operands]), reductions, shard)


def _only_computes(line: Line) -> bool:
    return not line.communicates and line.target is not GRAD and line.target is not PARAM


def _all_as_first(operands: list[Place]) -> bool:
    """Whether all operands are as one that is no shard: so is what is computed from them."""
    first = operands[0]
    return not first.shard and (len(operands) == 1 or operands.count(first) == len(operands))


_place_of = lru_cache(Place)  # few differ, and many nodes are asked for


def _input_place(program: Program, node: fx.Node) -> Place:
    info = input_of(node)
    param = info.subject if info.kind == "param" else stamp_of(node).param
    if param:
        layouts = program.params[param].layouts.values()
        replicated = all(layout.replicated for layout in layouts)
        return _place_of(False, 0, "" if replicated else param)
    if info.kind == "grad":
        return _place_of(False, 1, "")
    if info.kind == "state":
        own = program.state[info.subject].kind in ("accumulator", "error_feedback")
        return _place_of(own, 0, "")
    return _place_of(info.kind in ("user", "buffer", "tangent"), 0, "")


def is_gradient_reduction(node: fx.Node) -> bool:
    """True for a reduction that a pass inserted for gradients.

    The user's own are not counted, nor those of an optimizer, which reduces what it likes.
    """
    if node.target is GRAD:
        return True
    if stamp_of(node).phase == UPDATE:
        return False
    return (
        is_collective(node)
        and COLLECTIVES[node.target].lane == "reduce"
        and not stamp_of(node).user
    )


def _check_read(program: Program, node: fx.Node, places: Places) -> None:
    """The user's own forward and backward nodes never see a shard at rest."""
    stamp = stamp_of(node)
    if node.op != "call_function" or node.target is PARAM or stamp.phase == UPDATE:
        return
    if (stamp.made_by != "capture" and not stamp.recompute) or written_operands(node):
        return
    if reads_no_values(node):
        return
    for source in node.all_input_nodes:
        if places[source].shard:
            what = (
                f"%{node.name} reads %{source.name}, the shard of parameter "
                f"{places[source].shard!r}, as if it were whole"
            )
            remedy = "gather the parameter and read the result of the wait"
            raise refusal(program, node, what, remedy)


def _check_reduction(program: Program, node: fx.Node) -> None:
    if is_gradient_reduction(node):
        what = f"%{node.name} reduces a value that was reduced before"
        raise refusal(program, node, what, "reduce each gradient once")


def _check_write(program: Program, node: fx.Node, stored: dict[int, str]) -> None:
    """What is written to a parameter is not one rank's own, unless it holds a reduced gradient."""
    for key in (k for target in written_operands(node) for k in storages_of(target)):
        if key in stored and _ranks_of(program, stored[key]) > 1:
            what = (
                f"%{node.name} writes parameter {stored[key]!r} from a value of this rank alone, "
                f"without a reduction"
            )
            raise refusal(program, node, what, "reduce the gradient before the update")


def _check_gradients(program: Program, places: Places) -> None:
    output = program.output_node()
    values = zip(program.output_values(), program.outputs, strict=True)
    for position, (value, info) in enumerate(values):
        if info.kind != "grad" or not isinstance(value, fx.Node):
            continue
        if _ranks_of(program, info.subject) == 1:
            continue
        if places[value].reductions == 0:
            what = (
                f"output {position} (%{value.name}), the gradient of {info.subject!r}, is never "
                f"reduced"
            )
            raise refusal(program, output, what, "reduce it over the parameter's axis")
        _check_subject(program, position, value, info.subject)


def _check_subject(program: Program, position: int, value: fx.Node, subject: str) -> None:
    """The value that a gradient comes from, by single operands only, is stamped for it."""
    node = value
    while not stamp_of(node).param and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    found = stamp_of(node).param
    if node.op == "call_function" and found and found != subject:
        what = (
            f"output {position} (%{value.name}) is the gradient of {subject!r} and comes from "
            f"%{node.name}, which is for {found!r}"
        )
        raise refusal(
            program, program.output_node(), what, "keep outputs in the order of program.outputs"
        )


def _ranks_of(program: Program, name: str) -> int:
    size = 1
    for axis in program.params[name].layouts:
        size *= program.mesh.size(axis)
    return size
