from debug.programs import GatherAll, chain_step

from zc.debug.dot import MAX_NODES, draw, lane_of
from zc.debug.fold import fold, outline
from zc.program.collectives import WAIT, is_collective
from zc.program.program import Program


def gathered(layers: int, name: str = "train.py:12 step") -> Program:
    program = chain_step(layers, name=name)
    GatherAll().run(program)
    return program


def test_logical_program(golden):
    golden(draw(chain_step()), ".dot")


def test_physical_program(golden):
    golden(draw(gathered(2)), ".dot")


def test_a_large_program_is_folded_by_module(golden):
    program = gathered(50)
    assert len(list(program.nodes())) > MAX_NODES
    golden(draw(program), ".dot")


def test_outline(golden):
    golden(outline(gathered(3)))


def test_two_captures_draw_the_same():
    assert draw(gathered(3)) == draw(gathered(3))


def test_names_are_quoted():
    assert draw(chain_step(name='a "b" \\c')).startswith('digraph "a \\"b\\" \\\\c" {\n')


def test_waits_have_the_lane_of_their_collective():
    graph = gathered(1).graph
    assert [lane_of(n) for n in graph.nodes if is_collective(n)] == ["gather", "reduce"]
    waits = graph.find_nodes(op="call_function", target=WAIT)
    assert [lane_of(n) for n in waits] == ["gather", "reduce"]
    assert all(lane_of(n) is None for n in graph.nodes if n.name.startswith(("mm", "relu", "x")))


def test_folding_goes_as_deep_as_fits():
    program = gathered(4)
    by_layer = fold(program, max_boxes=9).boxes
    assert ("forward", "layers.3") in by_layer
    assert list(fold(program, max_boxes=8).boxes) == [
        ("forward", "layers"), ("forward", ""), ("backward", "layers"),
    ]  # fmt: skip


def test_folding_loses_no_node_and_no_collective():
    program = gathered(4)
    boxes = fold(program, max_boxes=3).boxes.values()
    calls = [n for n in program.nodes() if n.op == "call_function"]
    assert sum(box.nodes for box in boxes) == len(calls)
    assert sum(box.collectives.total() for box in boxes) == sum(map(is_collective, calls))


def test_a_value_crosses_to_a_box_once():
    edges = fold(gathered(1)).edges
    assert edges == {
        (("forward", "layers.0"), ("forward", "")): 64,  # relu, read by sum and ones_like
        (("forward", "layers.0"), ("backward", "layers.0")): 256,  # the gathered weight
        (("forward", ""), ("backward", "layers.0")): 64,  # ones_like
    }
