"""Communication plans: what ranks agree on, through one store, without a collective."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from multiprocess import fake_world
from threads import on_threads
from tracing import physical, program_of

from zc import plan, torch_private
from zc.errors import PlanError
from zc.program.program import Program

ONE = [
    "forward all_gather f32[256] on dp of 'w0'",
    "backward reduce_scatter f32[256] on dp of 'w0'",
]
OTHER = [ONE[0], "backward reduce_scatter f32[128] on dp of 'w1'"]
ADVICE = (
    "make every rank run the same modules in the same order (a branch on local data must not "
    "decide which parameters are used)"
)


STORE = object()


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """``ranks(call, call)``: what each call, on a rank of its own, raises; one store for all."""
    store, here = dist.HashStore(), threading.local()
    monkeypatch.setattr(plan, "AGREE_SECONDS", 0.3)
    monkeypatch.setattr(plan, "_known", plan._Known())
    monkeypatch.setattr(torch_private, "default_store", lambda: store)
    monkeypatch.setattr(dist, "get_rank", lambda *_: here.rank)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_backend", lambda *_: "gloo")

    def message(call: Callable[[], Any]) -> str:
        try:
            call()
        except PlanError as error:
            return str(error)
        return ""

    return lambda *calls: on_threads(here, [partial(message, call) for call in calls])


def compare(lines: list[str], *, world: int = 2, recompile: bool = False) -> Callable[[], None]:
    return lambda: plan._compare("zc/plan/f#0/0", lines, "f.py:1 f", world, recompile=recompile)


@pytest.mark.parametrize("world", [2, 3])
def test_the_same_plan(ranks: Callable[..., list[str]], world: int):
    assert ranks(*[compare(ONE, world=world)] * world) == [""] * world


def test_different_plans_are_refused_on_every_rank(ranks: Callable[..., list[str]]):
    found = ranks(compare(ONE), compare(OTHER))
    assert found[0] == found[1]
    sides = [f"{ONE[1]} on rank 0", f"{OTHER[1]} on rank 1"]
    wordings = [
        f"f.py:1 f: ranks compiled different programs; collective 1 is {a} and {b}; {ADVICE}"
        for a, b in (sides, sides[::-1])  # whoever came first
    ]
    assert found[0] in wordings


def test_a_shorter_plan(ranks: Callable[..., list[str]]):
    (message, _) = ranks(compare(ONE), compare(ONE[:1]))
    sides = [f"{ONE[1]} on rank 0", "nothing more on rank 1"]
    assert any(f"collective 1 is {a} and {b};" in message for a, b in (sides, sides[::-1]))


def test_a_rank_that_is_late_with_its_first_plan(ranks: Callable[..., list[str]]):
    assert ranks(compare(ONE)) == [""]


def test_a_rank_that_recompiles_alone(ranks: Callable[..., list[str]]):
    assert ranks(compare(ONE, recompile=True)) == [
        "f.py:1 f: rank 0 recompiled with a different communication plan and only 1 of 2 ranks "
        "did so within 0 s; a branch on local data decides which parameters are used: take it out "
        "of the compiled function, or make it the same on every rank"
    ]


def test_ranks_that_recompile_together(ranks: Callable[..., list[str]]):
    assert ranks(*[compare(ONE, recompile=True)] * 2) == ["", ""]


def program(rows: int = 16, name: str = "f.py:1 f", *, training: bool = True) -> Program:
    def loss(p: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
        return (x["x"] @ p["w"]).sum()

    result = physical(program_of(loss, {"w": (16, rows)}, {"x": (2, 16)}, 2))
    result.name, result.training = name, training
    return result


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Key and kind of every comparison that ``agree`` asks for."""
    found: list[tuple[str, bool]] = []
    monkeypatch.setattr(plan, "_known", plan._Known())
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_backend", lambda *_: "gloo")

    monkeypatch.setattr(torch_private, "default_store", lambda: STORE)
    monkeypatch.setattr(plan, "group_of", lambda axis: axis)
    monkeypatch.setattr(dist, "get_process_group_ranks", lambda group: [0, 1])

    def note(key: str, lines: list[str], name: str, world: int, *, recompile: bool) -> None:
        found.append((key, recompile))

    monkeypatch.setattr(plan, "_compare", note)
    return found


def test_a_recompile_with_the_same_plan_is_not_compared(compared: list[tuple[str, bool]]):
    weight = torch.ones(2)
    for _ in range(2):
        plan.agree(program(), [weight])
    assert compared == [("zc/plan/f.py:1 f/train/[0, 1]#0/0", False)]


def test_a_recompile_with_another_plan_is(compared: list[tuple[str, bool]]):
    weight = torch.ones(2)
    plan.agree(program(16), [weight])
    plan.agree(program(32), [weight])
    assert compared[1:] == [("zc/plan/f.py:1 f/train/[0, 1]#0/1", True)]


def test_two_models_of_one_class_have_their_own_plans(compared: list[tuple[str, bool]]):
    one, other = torch.ones(2), torch.ones(2)
    plan.agree(program(16), [one])
    plan.agree(program(32), [other])
    assert compared[1:] == [("zc/plan/f.py:1 f/train/[0, 1]#1/0", False)]


def test_training_and_inference_have_their_own_plans(compared: list[tuple[str, bool]]):
    weight = torch.ones(2)
    plan.agree(program(16), [weight])
    plan.agree(program(32, training=False), [weight])
    assert compared[1:] == [("zc/plan/f.py:1 f/infer/[0, 1]#0/0", False)]


def test_a_program_without_communication_needs_no_agreement(compared: list[tuple[str, bool]]):
    silent = program()
    silent.graphs = {"step": torch.fx.Graph()}
    plan.agree(silent, [])
    assert compared == []


def test_a_fake_group_has_nobody_to_agree_with():
    with fake_world(4):
        plan.agree(program(), [torch.ones(2)])


def test_one_process_has_nobody_to_agree_with():
    plan.agree(program(), [torch.ones(2)])
