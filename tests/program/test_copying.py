"""Copies of programs: what is done to one leaves the other alone, and one can take its place."""

from building import built, neg
from torch import fx

from zc.program.copying import copy_program, restore
from zc.program.edit import Editor, erase_dead
from zc.program.nodes import value_of
from zc.program.printer import print_program
from zc.program.program import Program
from zc.verify import verify


def a_program() -> Program:
    def build(edit: Editor, x: fx.Node) -> fx.Node:
        return neg(edit, neg(edit, x))

    return built(build)


def shorten(program: Program) -> None:
    """Return the first of two negated values."""
    (output,) = program.graph.find_nodes(op="output")
    first, second = [n for n in program.graph.nodes if n.op == "call_function"]
    output.replace_input_with(second, first)
    erase_dead(program.graph, [second])


def test_a_copy_shares_types_and_no_node():
    program = a_program()
    copy = copy_program(program)
    pairs = list(zip(program.nodes(), copy.nodes(), strict=True))
    assert all(mine is not other for mine, other in pairs)
    assert all(value_of(mine) is value_of(other) for mine, other in pairs)
    assert print_program(copy) == print_program(program)


def test_a_program_takes_back_what_it_was():
    program = a_program()
    before = print_program(program)
    saved = copy_program(program)
    shorten(program)
    program.rules["gone"] = "afterwards"
    assert print_program(program) != before
    restore(program, saved)
    assert print_program(program) == before
    assert "gone" not in program.rules
    verify(program)
