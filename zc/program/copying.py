"""A copy of a program, whose graphs and tables can change while the original stays."""

from dataclasses import replace

from torch import fx

from zc.program.program import Program


def copy_program(program: Program) -> Program:
    """``program`` again: nodes are new, their types (fake tensors) are shared."""
    return replace(
        program,
        graphs={name: _copy(graph) for name, graph in program.graphs.items()},
        outputs=list(program.outputs),
        params=dict(program.params),
        state=dict(program.state),
        constants=dict(program.constants),
        rules=dict(program.rules),
        decisions=dict(program.decisions),
        updates=list(program.updates),
        notes=list(program.notes),
    )


def restore(program: Program, saved: Program) -> None:
    """Give ``program`` the graphs, state and rules of ``saved``, its copy, not used from then on.

    Nodes of ``program`` are others then, and what refers to the earlier ones is out of date.
    """
    program.graphs, program.state, program.rules = saved.graphs, saved.state, saved.rules


def _copy(source: fx.Graph) -> fx.Graph:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in source.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    return graph
