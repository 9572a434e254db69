"""Mutants of valid programs: each mutation breaks one thing, at every place where it can.

``mutants(program, mutation)`` yields changed copies. Mutants that mean the same as the original are
not generated: casts before casts, swaps of equal things and the like are left out by ``places``.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from torch import fx
from verify import changes
from verify.places import (
    collectives,
    computed,
    feeding_own_phase,
    gradient_outputs,
    mistakable,
    overtaking,
    parameter_inputs,
    read_as_typed,
    regathered,
    returns,
    sized,
    swappable,
    tensors,
    views,
    waits,
    waits_of,
    writes,
)

from zc.program.program import Program


@dataclass(frozen=True)
class Mutation:
    """One way to break a program: at which nodes, and how."""

    places: Callable[[Program], list[fx.Node]]
    apply: Callable[[Program, fx.Node], None]


def mutants(program: Program, mutation: Mutation, limit: int | None = None) -> Iterator[Program]:
    """Copies of ``program``, each broken at one place; at most ``limit``, spread over the graph."""
    places = mutation.places(program)
    step = 1 if limit is None else max(1, -(-len(places) // limit))
    for node in islice(places, 0, None, step):
        mutant = copy_program(program)
        found = next(n for n in mutant.nodes() if n.name == node.name)
        mutation.apply(mutant, found)
        yield mutant


def copy_program(program: Program) -> Program:
    graphs = {name: copy_graph(graph) for name, graph in program.graphs.items()}
    outputs, rules, state = list(program.outputs), dict(program.rules), dict(program.state)
    return replace(program, graphs=graphs, outputs=outputs, rules=rules, state=state)


def copy_graph(graph: fx.Graph) -> fx.Graph:
    copied = fx.Graph()
    copied.output(copied.graph_copy(graph, {}))
    return copied


VERIFIED: dict[str, Mutation] = {
    "drop_wait": Mutation(waits, changes.drop_wait),
    "double_wait": Mutation(waits, changes.double_wait),
    "wait_for_a_wait": Mutation(waits, changes.wait_for_a_wait),
    "drop_gather": Mutation(waits_of("gather"), changes.drop_gather),
    "drop_gather_and_repeat": Mutation(waits_of("gather"), changes.drop_gather_and_repeat),
    "drop_reduction": Mutation(waits_of("reduce"), changes.drop_reduction),
    "double_reduction": Mutation(waits_of("reduce"), changes.double_reduction),
    "release_early": Mutation(waits, changes.release_early),
    "write_operand_in_flight": Mutation(collectives, changes.write_operand_in_flight),
    "write_twice": Mutation(writes, changes.write_twice),
    "read_after_write": Mutation(writes, changes.read_after_write),
    "change_stored_dtype": Mutation(tensors, changes.change_stored_dtype),
    "change_stored_shape": Mutation(tensors, changes.change_stored_shape),
    "cast_without_types": Mutation(read_as_typed, changes.cast_without_types),
    "forget_alias": Mutation(views, changes.forget_alias),
    "wrong_group_size": Mutation(sized, changes.wrong_group_size),
    "wrong_axis": Mutation(collectives, changes.wrong_axis),
    "wrong_parameter": Mutation(mistakable, changes.wrong_parameter),
    "keep_gathered": Mutation(regathered, changes.keep_gathered),
    "change_phase": Mutation(feeding_own_phase, changes.change_phase),
    "swap_with_operand": Mutation(swappable, changes.swap_with_operand),
    "swap_gradients": Mutation(gradient_outputs, changes.swap_gradients),
    "drop_output": Mutation(returns, changes.drop_output),
    "drop_stamp": Mutation(computed, changes.drop_stamp),
    "drop_maker": Mutation(computed, changes.drop_maker),
    "drop_type": Mutation(tensors, changes.drop_type),
    "bind_twice": Mutation(parameter_inputs, changes.bind_twice),
    "gather_for_nothing": Mutation(waits_of("gather"), changes.gather_for_nothing),
    "hidden_random": Mutation(tensors, changes.hidden_random),
    "lower_cap": Mutation(returns, changes.lower_cap),
}
ON_ONE_RANK: dict[str, Mutation] = {
    "overtake": Mutation(overtaking, changes.overtake),
    "skip_collective": Mutation(collectives, changes.skip_collective),
}
