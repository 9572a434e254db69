from debug.programs import GatherAll, chain_step
from hypothesis import given
from hypothesis import strategies as st

from zc.debug.curve import decimate, memory_curve, peaks_by_phase
from zc.program.liveness import peak_bytes
from zc.program.mesh import Mesh
from zc.program.program import Program


def gathered(layers: int = 3) -> Program:
    program = chain_step(layers)
    GatherAll().run(program)
    return program


def test_live_values_are_largest_first_and_named_after_their_maker():
    curve = memory_curve(gathered(1))
    assert curve.peak is not None
    assert [(node.name, count) for node, count in curve.at_peak] == [
        ("w0_start", 256), ("mm_1", 256), ("w0", 64), ("x", 64),
        ("ones_like", 64), ("grad_scatter_start", 64), ("sum_1", 4),
    ]  # fmt: skip


def test_the_peak_is_that_of_the_program():
    program = gathered()
    curve = memory_curve(program)
    assert curve.peak is not None
    assert curve.peak[1].live_bytes == peak_bytes(program.graph)
    assert curve.peak in curve.points
    assert curve.input_bytes == 3 * 64 + 64
    assert max(peaks_by_phase(program).values()) == peak_bytes(program.graph)
    assert peaks_by_phase(program)["update"] == 0


def test_a_program_that_computes_nothing_has_no_peak():
    curve = memory_curve(Program("empty", 1, Mesh(), {}, []))
    assert (curve.points, curve.peak, curve.at_peak, curve.input_bytes) == ([], None, [], 0)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=300), st.integers(2, 40))
def test_decimation_keeps_ends_of_the_range_and_order(heights: list[int], limit: int):
    items = list(enumerate(heights))
    kept = decimate(items, limit, lambda item: item[1])
    assert len(kept) <= limit
    assert kept == sorted(kept)
    assert max(h for _, h in kept) == max(heights)
    assert min(h for _, h in kept) == min(heights)
