"""``zc.microbatches`` as capture sees it: the loop, and functions that cannot be its body."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from capture.training import place_of
from torch import nn

import zc
from zc.errors import CaptureError
from zc.verify import verify

X, Y = torch.ones(8, 4), torch.zeros(8, dtype=torch.int64)
pytestmark = pytest.mark.usefixtures("fresh_compiler")


class Net(nn.Module):
    def __init__(self, *, norm: bool = False) -> None:
        super().__init__()
        self.up = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4, affine=False) if norm else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.up(x))


def loss_of(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    return loss.detach()


def captured(step: Callable[..., Any], **options: Any) -> Any:
    return zc.capture(step, X, Y, **options)


def test_program(golden: Callable[..., None]):
    """Dropout draws from a seed of its own, the buffers are written at each turn."""
    model = nn.Sequential(Net(norm=True), nn.Dropout(0.5))

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return zc.microbatches(lambda *micro: loss_of(model, *micro), 4, x, y, reduce="mean")

    program = captured(step)
    verify(program)
    golden(str(program).replace(program.name, "step"), ".ir")


def clips(model: Net, optimizer: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    loss = loss_of(model, x, y)
    nn.utils.clip_grad_value_(model.parameters(), 0.5)
    return loss


def steps(model: Net, optimizer: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    loss = loss_of(model, x, y)
    zc.step(optimizer)
    return loss


def decays(model: Net, optimizer: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    loss = loss_of(model, x, y)
    model.up.weight.grad.add_(model.up.weight.detach())
    return loss


def writes(model: Net, optimizer: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    loss = loss_of(model, x, y)
    with torch.no_grad():
        model.up.weight.mul_(0.9)
    return loss


def nests(model: Net, optimizer: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return zc.microbatches(lambda *micro: loss_of(model, *micro), 2, x, y, reduce="mean")


def computes(model: Net, optimizer: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(x), y).detach()


def keeps(model: Net, optimizer: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    model.kept = model(x).detach()  # type: ignore[assignment]
    return loss_of(model, x, y)


HERE = str(Path(__file__))
BEFORE_ALL = (
    "inside the function of zc.microbatches, before all micro-batches are in it; clip and step "
    "behind zc.microbatches"
)
RETURN = (
    "return what you need from the function of zc.microbatches, as a 0-d tensor that can be added "
    "up"
)
LEAVES = f"leaves the compiled function; {RETURN}"
READ = f"is read behind zc.microbatches, by %sum_2: f32[] = aten.sum(%detach); {RETURN}"
REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "clips": (
        clips,
        "%clamp_min: f32[4, 4] = aten.clamp_min(%copy, -0.5) (HERE) reads the gradient of "
        f"parameter 'up.weight' {BEFORE_ALL}",
    ),
    "steps": (
        steps,
        "%update: none = zc.update([%arg2_1, %arg3_1], [%grad, %grad_1], 0) (HERE) reads the "
        f"gradient of parameter 'up.weight' {BEFORE_ALL}",
    ),
    "decays": (
        decays,
        "%add: f32[4, 4] = aten.add.Tensor(%copy, %detach_3) (HERE) reads the gradient of parameter"
        f" 'up.weight' {BEFORE_ALL}",
    ),
    "writes": (
        writes,
        "the function of zc.microbatches writes parameter 'up.weight' (HERE), which would change "
        "between micro-batches; write it behind zc.microbatches",
    ),
    "nests": (
        nests,
        "zc.microbatches is called inside the function of another zc.microbatches (HERE); call it "
        "once, with the product of both counts",
    ),
    "computes": (
        computes,
        "the function of zc.microbatches in PLACE computes no gradient of a parameter; call "
        "backward() on its loss there",
    ),
    "keeps": (
        keeps,
        f"%detach: f32[4, 4] = aten.detach(%addmm) (HERE) belongs to one micro-batch and {LEAVES}",
    ),
    "keeps and reads": (
        keeps,
        f"%detach: f32[4, 4] = aten.detach(%addmm) (HERE) belongs to one micro-batch and {READ}",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str):
    body, message = REFUSED[name]
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        fn = lambda *micro: body(model, optimizer, *micro)  # noqa: E731
        loss = zc.microbatches(fn, 2, x, y, reduce="mean")
        return loss + model.kept.sum() if "reads" in name else loss

    with pytest.raises(CaptureError) as error:
        captured(step)
    found = str(error.value).replace(place_of(step), "PLACE")
    assert without_lines(found, body.__code__.co_firstlineno) == message


def without_lines(text: str, first: int) -> str:
    """``text`` with a place in the function that begins at line ``first`` as HERE.

    Handles of optimizers become 0.
    """
    for line in range(first, first + 8):
        text = text.replace(f"({HERE}:{line})", "(HERE)")
    return re.sub(r"\], \d+\) \(HERE\)", "], 0) (HERE)", text)


def test_a_buffer_written_before_the_loop_too():
    model = Net(norm=True)

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        model(x)
        return zc.microbatches(lambda *micro: loss_of(model, *micro), 2, x, y, reduce="mean")

    with pytest.raises(CaptureError) as error:
        captured(step)
    assert without_lines(str(error.value), Net.forward.__code__.co_firstlineno) == (
        "input %arg3_1: i64[]  {buffer 'norm.num_batches_tracked'} is written before "
        "zc.microbatches (HERE) and again by its function; call the module that writes it in one "
        "of the two places"
    )
