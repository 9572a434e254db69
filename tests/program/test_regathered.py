"""What backward gathers again, by what forward has gathered."""

import torch
from tracing import physical, program_of

from zc.program.program import Program
from zc.program.regathered import regathered
from zc.program.storages import storages_of


def two_products(count: int = 0) -> Program:
    def loss(p: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
        return ((x["x"] @ p["w0"]).tanh() @ p["w1"].t()).square().sum()

    shapes = {"w0": (8, 8), "w1": (8, 8)}
    return physical(program_of(loss, shapes, {"x": (16, 8)}, count=count))


def test_a_value_of_backward_for_each_that_it_gathers_again():
    (twins,) = regathered(two_products().graph, ()).values()
    named = {early.name: late.name for early, late in twins.items()}
    assert named["w1_full"] == "w1_full_again"
    assert named["w1_gather"] == "w1_gather_1"
    assert not any(name.startswith("w0") for name in named)  # no gradient of a batch is taken


def test_a_loop_has_its_own():
    ((_, loop),) = regathered(two_products(count=2).graph, ())
    assert loop is not None


def test_parameters_that_change_have_none():
    program = two_products()
    (w1,) = (n for n in program.placeholders() if n.name == "w1")
    assert not regathered(program.graph, storages_of(w1))
