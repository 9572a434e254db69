"""Regions: what is one, what they share, and what their keys are free of."""

from collections.abc import Sequence

import pytest
import torch
from multiprocess import fake_world
from run.programs import BATCH, LAYERS, layered, random_values, run
from torch import fx
from torch.fx.node import map_arg
from tracing import physical, program_of

import zc.run.compile
from zc.program.collectives import is_collective, is_wait
from zc.program.nodes import value_of
from zc.program.program import Program
from zc.run.compile import compile_regions, compiled_regions
from zc.run.regions import Region, extract, free_of_work, split_regions, structure_key

INDUCTOR = 1e-6  # relative; fused expressions round differently, one operation here and there
SUMS = 1e-4  # absolute; of 256 numbers of order 1, in another order


def regions_of(program: Program) -> list[Region]:
    return [p for p in split_regions(program.graph) if isinstance(p, Region)]


def keys_of(program: Program) -> list[str]:
    return [structure_key(extract(r)) for r in regions_of(program) if not free_of_work(r)]


def test_effects_stay_where_they_are():
    program = layered(world=4)
    effects = [p for p in split_regions(program.graph) if not isinstance(p, Region)]
    nodes = [n for n in program.graph.nodes if is_collective(n) or is_wait(n)]
    assert effects == nodes


def test_layers_that_are_alike_share_a_region():
    keys = keys_of(layered(world=4))
    assert len(keys) == 7
    assert len(set(keys)) == 4  # a layer, the last one and the turn, a layer's backward, the first


def test_more_layers_bring_no_more_structures():
    more = {f"w{i}": (16, 16) for i in range(12)}
    assert len(set(keys_of(layered(more, world=4)))) == len(set(keys_of(layered(world=4))))


def test_keys_are_free_of_names_and_ranks():
    renamed = {f"other.{i}.weight": shape for i, shape in enumerate(LAYERS.values())}
    assert keys_of(layered(world=4)) == keys_of(layered(renamed, world=4))
    with fake_world(4, rank=3):
        assert keys_of(layered(world=4)) == keys_of(layered(world=4))


@pytest.mark.parametrize("change", ["shape", "constant", "dtype"])
def test_keys_tell_content_apart(change: str):
    def loss(p: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
        factor = 3 if change == "constant" else 2
        dtype = torch.bfloat16 if change == "dtype" else torch.float32
        return (p["w"].to(dtype) * factor).sum() + x["x"].sum()

    rows = 32 if change == "shape" else 16

    def plain(p: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
        return (p["w"].to(torch.float32) * 2).sum() + x["x"].sum()

    changed = keys_of(physical(program_of(loss, {"w": (rows, 16)}, BATCH)))
    assert changed != keys_of(physical(program_of(plain, {"w": (16, 16)}, BATCH)))


def test_a_region_knows_what_it_reads_and_makes():
    program = layered({"w0": (16, 16)})
    (region,) = regions_of(program)
    assert [n.name for n in region.inputs] == ["x", "w0"]
    assert [n.name for n in region.outputs] == [
        v.name for v in program.output_values() if v is not None
    ]


def test_regions_that_only_make_views_are_not_compiled():
    def loss(p: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
        return (x["x"] @ p["w"].t()).sum()

    program = physical(program_of(loss, {"w": (32, 16)}, BATCH))
    assert any(map(free_of_work, regions_of(program))) or keys_of(program)


def test_compiled_regions_are_shared(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(zc.run.compile, "_compiled", {})
    program = layered(world=4)
    with fake_world(4):
        zc.run.executor.build_loop(program, program.graph, program.outputs, "inductor", "step")
    assert compiled_regions().keys() == set(keys_of(program))


def test_compiled_equals_interpreted_nearly():
    program = layered()
    values = random_values(program)
    exact = run(program, "interpret", values)
    for found, expected in zip(run(program, "inductor", values), exact, strict=True):
        torch.testing.assert_close(found, expected, rtol=INDUCTOR, atol=INDUCTOR * 16)


def strides(nodes: Sequence[fx.Node]) -> list[tuple[int, ...]]:
    return [value_of(node).stride() for node in nodes]


@pytest.mark.parametrize("read_inside", [False, True])
def test_an_expanded_value_is_expanded_where_it_is_read(read_inside: bool):
    """Compiled code would return a copy, in a layout of its own."""

    def loss(p: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
        doubled = x["x"].mean(0) * 2
        rows = doubled.expand(16, 16)
        inside = rows.sum() if read_inside else doubled.sum()
        return ((rows.t() @ p["w"]) + inside).sum()  # w is gathered behind what is doubled

    program = physical(program_of(loss, {"w": (16, 16)}, BATCH))
    expanding = [r for r in regions_of(program) if any(0 in s for s in strides(r.outputs))]
    assert expanding
    for region, function in zip(expanding, compile_regions(expanding), strict=True):
        outside = extract(region).graph.output_node().all_input_nodes
        assert not any(0 in s for s in strides(outside))
        values = {node: torch.randn(value_of(node).shape) for node in region.inputs}
        found = function(list(values.values()))
        for node in region.nodes:
            args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)
        assert [value.stride() for value in found] == strides(region.outputs)
        expected = [values[node] for node in region.outputs]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=SUMS)


def test_strides_are_kept():
    program = layered()
    values = random_values(program)
    exact = run(program, "interpret", values)
    for found, expected in zip(run(program, "inductor", values), exact, strict=True):
        assert found.stride() == expected.stride()
