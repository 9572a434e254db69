"""Decisions that ranks share: who decides, who waits, and what a recompile follows."""

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from threads import on_threads
from tracing import physical, program_of

from zc import agreed, plan, torch_private
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
    """``ranks(work, work)``: what each returns, on a rank of its own; one store for all."""
    store, here = dist.HashStore(), threading.local()
    monkeypatch.setattr(agreed, "AGREE_SECONDS", 0.5)
    monkeypatch.setattr(torch_private, "default_store", lambda: store)
    monkeypatch.setattr(agreed, "group_of", lambda axis: axis)
    monkeypatch.setattr(dist, "get_process_group_ranks", lambda group: [0, 1])
    monkeypatch.setattr(dist, "get_rank", lambda *_: here.rank)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_backend", lambda *_: "gloo")

    def find(program: Program, tokens: Any, ranks: list[int]) -> plan.Function:
        functions = vars(here).setdefault("functions", {})  # each rank has its own
        return functions.setdefault(program.name, plan.Function("f", ranks))

    monkeypatch.setattr(agreed, "find", find)

    return lambda *works: on_threads(here, works)


def compilation(rows: int, decided: Decisions) -> Callable[[], Decisions]:
    """The decisions of a compilation that would come to ``decided``."""
    mine = program(rows)

    def compiled() -> Decisions:
        agreed.adopt(mine, [])
        mine.decisions = decided | mine.decisions
        agreed.publish(mine, [])
        return mine.decisions

    return compiled


def test_with_batches_of_one_size_each_rank_decides(ranks: Callable[..., list[Any]]):
    assert ranks(compilation(4, FIRST), compilation(4, OWN)) == [FIRST, OWN]


def test_with_another_size_the_first_rank_decides(ranks: Callable[..., list[Any]]):
    assert ranks(compilation(4, FIRST), compilation(8, OWN)) == [FIRST, FIRST]


def test_a_recompile_follows_without_asking(ranks: Callable[..., list[Any]]):
    first, second = compilation(4, FIRST), compilation(8, OWN)
    assert ranks(lambda: first() and second(), compilation(4, FIRST)) == [FIRST, FIRST]


def test_a_first_rank_that_does_not_come_is_not_waited_for(ranks: Callable[..., list[Any]]):
    assert ranks(lambda: None, compilation(8, OWN)) == [None, OWN]


def test_a_first_rank_that_does_not_decide_is_not_waited_for(ranks: Callable[..., list[Any]]):
    undecided = program(4)
    assert ranks(lambda: agreed.adopt(undecided, []), compilation(8, OWN)) == [None, OWN]


def test_replicated_parameters_leave_nothing_to_decide(ranks: Callable[..., list[Any]]):
    mine = program(4, sharded=False)

    def adopted() -> Any:
        agreed.adopt(mine, [])
        agreed.publish(mine, [])
        return torch_private.default_store().check(["f/sizes"])

    assert ranks(adopted) == [False]


def test_one_process_has_nobody_to_agree_with():
    mine = program(4)
    agreed.adopt(mine, [])
    agreed.publish(mine, [])
    assert mine.decisions == {}


def test_sizes_are_those_of_the_batch():
    assert agreed.sizes_of_batch(program(4)) == json.dumps([[4, 16]])
