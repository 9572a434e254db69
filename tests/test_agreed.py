"""Decisions that ranks share: who decides, who waits, and what a recompile follows."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from threads import on_threads
from tracing import physical, program_of

from zc import agreed, plan, torch_private
from zc.devices.reader import builtin_device
from zc.program.program import Program

Decisions = dict[str, tuple[int, ...]]

OWN, FIRST = {"keep_gathered 1": (2,)}, {"keep_gathered 1": (0, 1)}


def program(rows: int, *, sharded: bool = True) -> Program:
    def loss(p: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
        return (x["x"] @ p["w"]).sum()

    shapes = {"w": (16, 16)}
    return physical(
        program_of(loss, shapes, {"x": (rows, 16)}, 2, sharded=sharded), 3 if sharded else 0
    )


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """``ranks(work, work)``: what each returns, on a rank of its own; one store for all.

    ``nodes`` says how many ranks the node of each rank has.
    """
    store, here = dist.HashStore(), threading.local()
    cpu, nodes_of = builtin_device("cpu"), [2, 2]
    monkeypatch.setattr(agreed, "AGREE_SECONDS", 0.5)
    monkeypatch.setattr(torch_private, "default_store", lambda: store)
    monkeypatch.setattr(agreed, "group_of", lambda axis: axis)
    monkeypatch.setattr(
        agreed, "default_device", lambda _: replace(cpu, ranks_per_node=nodes_of[here.rank])
    )
    monkeypatch.setattr(dist, "get_process_group_ranks", lambda group: [0, 1])
    monkeypatch.setattr(dist, "get_rank", lambda *_: here.rank)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_backend", lambda *_: "gloo")

    def find(program: Program, tokens: Any, ranks: list[int]) -> plan.Function:
        functions = vars(here).setdefault("functions", {})  # each rank has its own
        return functions.setdefault(program.name, plan.Function("f", ranks))

    monkeypatch.setattr(agreed, "find", find)

    def run(*works: Callable[[], Any], nodes: tuple[int, int] = (2, 2)) -> list[Any]:
        nodes_of[:] = nodes
        return on_threads(here, works)

    return run


def compilation(
    rows: int, decided: Decisions, *, own_device: bool = True
) -> Callable[[], Decisions]:
    """The decisions of a compilation that would come to ``decided``."""
    mine = program(rows)

    def compiled() -> Decisions:
        agreed.adopt(mine, [], own_device=own_device)
        mine.decisions = decided | mine.decisions
        agreed.publish(mine, [])
        return mine.decisions

    return compiled


def test_with_batches_of_one_size_each_rank_decides(ranks: Callable[..., list[Any]]):
    assert ranks(compilation(4, FIRST), compilation(4, OWN)) == [FIRST, OWN]


def test_with_another_size_the_first_rank_decides(ranks: Callable[..., list[Any]]):
    assert ranks(compilation(4, FIRST), compilation(8, OWN)) == [FIRST, FIRST]


def test_on_a_node_of_another_size_the_first_rank_decides(ranks: Callable[..., list[Any]]):
    compilations = compilation(4, FIRST), compilation(4, OWN)
    assert ranks(*compilations, nodes=(8, 4)) == [FIRST, FIRST]


def test_with_a_device_file_nodes_do_not_count(ranks: Callable[..., list[Any]]):
    own = [compilation(4, decided, own_device=False) for decided in (FIRST, OWN)]
    assert ranks(*own, nodes=(8, 4)) == [FIRST, OWN]


def test_a_recompile_follows_without_asking(ranks: Callable[..., list[Any]]):
    first, second = compilation(4, FIRST), compilation(8, OWN)
    assert ranks(lambda: first() and second(), compilation(4, FIRST)) == [FIRST, FIRST]


def test_a_first_rank_that_does_not_come_is_not_waited_for(ranks: Callable[..., list[Any]]):
    assert ranks(lambda: None, compilation(8, OWN)) == [None, OWN]


def test_a_first_rank_that_does_not_decide_is_not_waited_for(ranks: Callable[..., list[Any]]):
    undecided = program(4)
    assert ranks(lambda: agreed.adopt(undecided, [], own_device=True), compilation(8, OWN)) == [
        None,
        OWN,
    ]


@pytest.mark.parametrize(("training", "trainable"), [(True, True), (True, False), (False, True)])
def test_whole_parameters_leave_nothing_to_decide_but_in_training(
    training: bool, trainable: bool, ranks: Callable[..., list[Any]]
):
    mine = program(4, sharded=False)
    mine.training = training
    mine.params = {k: replace(v, trainable=trainable) for k, v in mine.params.items()}

    def adopted() -> Any:
        agreed.adopt(mine, [], own_device=True)
        agreed.publish(mine, [])
        return torch_private.default_store().check(["f/facts"])

    assert ranks(adopted) == [training and trainable]


def test_one_process_has_nobody_to_agree_with():
    mine = program(4)
    agreed.adopt(mine, [], own_device=True)
    agreed.publish(mine, [])
    assert mine.decisions == {}


def test_facts_are_the_sizes_of_the_batch_and_the_device(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    sizes = json.dumps([[4, 16]])
    assert agreed.facts_of(program(4), own_device=False) == sizes
    assert agreed.facts_of(program(4), own_device=True) == f"{sizes}\ncpu, 4 ranks per node"
