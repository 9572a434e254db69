"""Printed IR, which golden tests and dumps hold on to."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tracing import physical, program_of

from zc.program.printer import print_arg, print_node, print_target, print_type
from zc.program.program import Program
from zc.program.stamps import restamp

aten: Any = torch.ops.aten
SHAPES = {"w0": (8, 4), "blocks.0.w": (8, 8), "b": (8,)}


def small(world: int = 4) -> Program:
    def loss(p: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
        hidden = torch.relu(x["x"] @ p["w0"].t()) + p["b"]
        return (hidden @ p["blocks.0.w"]).sum()

    return program_of(loss, SHAPES, {"x": (2, 4)}, world)


def test_logical_program(golden: Callable[[str, str], None]) -> None:
    golden(str(small()), ".ir")


def test_physical_program(golden: Callable[[str, str], None]) -> None:
    golden(str(physical(small())), ".ir")


def test_printing_is_deterministic() -> None:
    assert str(small()) == str(small())


def test_a_program_on_one_process_says_so() -> None:
    program = small()
    program = replace(program, mesh=replace(program.mesh, axes=()))
    assert str(program).startswith("program model.py:1 step (one process)\n")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.empty(2, 3), "f32[2, 3]"),
        (torch.empty((), dtype=torch.bfloat16), "bf16[]"),
        ((torch.empty(1, dtype=torch.bool), 3), "(bool[1], number)"),
        (None, "none"),
    ],
)
def test_types(value: Any, text: str) -> None:
    assert print_type(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([1, None, "dp"], '[1, none, "dp"]'),
        (torch.float16, "f16"),
        (torch.device("cpu"), "cpu"),
        (torch.preserve_format, "preserve_format"),
        (0.5, "0.5"),
    ],
)
def test_arguments(value: Any, text: str) -> None:
    assert print_arg(value) == text


def test_targets() -> None:
    assert print_target(aten.mm.default) == "aten.mm"
    assert print_target(aten.add.Tensor) == "aten.add.Tensor"
    assert print_target(torch.ops._c10d_functional.wait_tensor.default) == "c10d.wait_tensor"
    assert print_target(sum) == "sum"


def test_recomputed_nodes_are_marked() -> None:
    node = small().graph.find_nodes(op="call_function", target=aten.relu.default)[0]
    restamp(node, recompute=True)
    assert print_node(node) == "%relu: f32[2, 8] = aten.relu(%mm)  {recompute}"
