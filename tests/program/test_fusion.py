"""Fusion: what compiled regions keep in memory, by hand and against Inductor's own code."""

from typing import Any

import pytest
import torch
from benchmark_runs import benchmarks_on_path
from region_memory import allocated_bytes
from torch import fx
from tracing import program_of

from zc.pipelines.manager import run_passes
from zc.pipelines.pipeline import PassPipeline
from zc.planning.captured import Setting, capture_step
from zc.planning.models import Subject, example_inputs, loss_of
from zc.program.collectives import WAIT
from zc.program.fusion import fused_lives, fusion_of, kind_of
from zc.program.liveness import memory_timeline
from zc.program.program import Program
from zc.program.storages import storages_of
from zc.run.regions import Region, extract, free_of_work, split_regions, structure_key

aten: Any = torch.ops.aten
F32 = 4
REPLICATED: Any = [
    {"shard_params": {"zero_stage": 0}},
    "shard_update",
    "clean_graph",
    "lower_update",
]
TOLERANCE = 0.08  # Inductor's own order of kernels, and the few bytes for each row that they keep


def traced(fn: Any, **shapes: tuple[int, ...]) -> Program:
    return program_of(lambda p, x: fn(p["w"], **x).sum(), {"w": (8, 8)}, shapes, 1)


def node_of(program: Program, target: Any) -> fx.Node:
    return program.graph.find_nodes(op="call_function", target=target)[0]


def in_memory(program: Program) -> set[Any]:
    """Targets of the nodes of forward whose value is in memory."""
    fusion = fusion_of(program.graph)
    kept = [node for node, kind in fusion.kinds.items() if kind != "view"]
    return {node.target for node in kept if node not in fusion.inlined}


@pytest.mark.parametrize(
    ("fn", "target", "kind"),
    [
        (lambda w, x: (x @ w).t(), aten.t.default, "view"),
        (lambda w, x: x @ w, aten.mm.default, "call"),
        (lambda w, x: torch.tanh(x @ w), aten.tanh.default, "inline"),
        (lambda w, x: torch.softmax(x @ w, -1), aten._softmax.default, "inline"),
        (lambda w, x: (x @ w).sum(0), aten.sum.dim_IntList, "loop"),
        (lambda w, x: torch.cat([x, w]) @ w, aten.cat.default, "loop"),
        (lambda w, x: (x @ w).cumsum(0), aten.cumsum.default, "call"),
    ],
)
def test_kinds(fn: Any, target: Any, kind: str):
    assert kind_of(node_of(traced(fn, x=(4, 8)), target)) == kind


def test_only_what_a_call_reads_is_in_memory():
    program = traced(lambda w, x: torch.exp(torch.tanh(x) + 1) @ w, x=(4, 8))
    found = in_memory(program)
    assert aten.exp.default in found  # the product reads it
    assert not found & {aten.tanh.default, aten.add.Tensor}


def test_what_leaves_the_region_is_in_memory():
    program = traced(lambda w, x: torch.tanh(x) * 2 + (x @ w), x=(4, 8))
    assert aten.tanh.default not in in_memory(program)
    tanh = node_of(program, aten.tanh.default)
    (output,) = program.graph.find_nodes(op="output")
    output.args = ([*output.args[0], tanh],)  # type: ignore[misc]
    assert aten.tanh.default in in_memory(program)


def test_what_an_inlined_value_reads_lives_until_its_reader():
    program = traced(lambda w, x: (x @ w) + torch.tanh(torch.exp(x @ w) @ w), x=(4, 8))
    lives = fused_lives(program.graph)
    order = {node: place for place, node in enumerate(program.graph.nodes)}
    first = program.graph.find_nodes(op="call_function", target=aten.mm.default)[0]
    add = node_of(program, aten.add.Tensor)
    assert lives.deaths[first] >= order[add]


def test_an_elementwise_result_takes_over_the_memory_of_its_operand():
    program = traced(lambda w, x: torch.tanh((x * w[0]) @ w.detach()) @ w, x=(4, 8))
    product = node_of(program, aten.mm.default)
    (key,) = storages_of(product)
    nodes = list(program.graph.nodes)
    assert nodes[fused_lives(program.graph).taken[key]].target is aten.tanh.default


def test_a_product_that_is_added_to_something_is_computed_there():
    program = traced(lambda w, x: (torch.tanh(x * w[0]) + x @ w) @ w, x=(8, 8))
    (add,) = program.graph.find_nodes(op="call_function", target=aten.add.Tensor)[:1]
    product = next(n for n in add.all_input_nodes if n.target is aten.mm.default)
    fusion, lives = fusion_of(program.graph), fused_lives(program.graph)
    assert fusion.kinds[add] == "call"
    assert storages_of(product).keys() <= lives.absent
    assert lives.deaths[product] == fusion.order[add]


def test_a_region_of_views_alone_is_not_compiled():
    program = traced(lambda w, x: x @ w.t(), x=(4, 8))
    transpose = node_of(program, aten.t.default)
    assert transpose in fusion_of(program.graph).region
    for insert in (program.graph.inserting_before, program.graph.inserting_after):
        with insert(transpose):
            wait = program.graph.call_function(WAIT, (transpose.args[0],))
        wait.meta["val"] = program.graph.find_nodes(op="placeholder")[0].meta["val"]
    assert transpose not in fusion_of(program.graph).region


@pytest.fixture
def _benchmarks(monkeypatch: pytest.MonkeyPatch):
    with benchmarks_on_path(monkeypatch):
        yield


def gpt() -> Any:
    from systems import GPT, Config

    return GPT(Config(2, 2, 64, 32))


def gated() -> Any:
    """Gates, root-mean-square norms and dropout, as other models have them."""

    class Gated(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.gate = torch.nn.Linear(64, 128), torch.nn.Linear(64, 128)
            self.down, self.norm = torch.nn.Linear(128, 64), torch.nn.RMSNorm(64)
            self.embedding, self.head = torch.nn.Embedding(99, 64), torch.nn.Linear(64, 99)

        def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            x = self.embedding(tokens)
            h = torch.nn.functional.silu(self.gate(self.norm(x))) * self.up(x)
            x = x + torch.nn.functional.dropout(self.down(h), 0.1)
            scores = self.head(torch.softmax(x, -1))
            return torch.nn.functional.cross_entropy(scores.flatten(0, 1), targets.flatten())

    return Gated()


def regions_of(build: Any, passes: Any) -> dict[str, Region]:
    """The distinct compiled regions of a training step under a pass pipeline."""
    found: dict[str, Region] = {}
    subject = Subject("model", build, example_inputs, loss_of)
    program = capture_step(subject, Setting(2, 2, 32), sharded=passes is not REPLICATED)
    run_passes(program, PassPipeline.resolve(passes))
    for region in split_regions(program.graph):
        if isinstance(region, Region) and not free_of_work(region):
            found.setdefault(structure_key(extract(region)), region)
    return found


@pytest.mark.usefixtures("_benchmarks")
@pytest.mark.parametrize(("build", "passes"), [(gpt, "zero1"), (gated, REPLICATED)])
def test_what_regions_allocate_is_predicted(build: Any, passes: Any):
    regions = regions_of(build, passes)
    assert len(regions) >= 4
    predicted, real = [], []
    for region in regions.values():
        graph = extract(region).graph
        inputs = {
            k: s for n in graph.find_nodes(op="placeholder") for k, s in storages_of(n).items()
        }
        points = memory_timeline(graph, fused=True)
        predicted.append(max(p.live_bytes for p in points) - sum(inputs.values()))
        real.append(allocated_bytes(region))
    assert predicted == [pytest.approx(size, rel=TOLERANCE) for size in real]
