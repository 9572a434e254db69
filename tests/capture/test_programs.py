"""What capture makes of a function: reads, reductions, names, phases and outputs, as printed IR."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from multiprocess import fake_world
from torch import nn
from torch.utils.checkpoint import checkpoint

import zc
from zc.program.collectives import collectives_of
from zc.program.program import Program

WORLD = 4


class Tied(nn.Module):
    """One weight read three times, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 16)
        self.head = nn.Linear(16, 32, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(x) + self.embed.weight[0])


class Parted(nn.Module):
    """A frozen layer below, a trained one, and one that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.below = nn.Linear(16, 16, bias=False).requires_grad_(False)
        self.trained = nn.Linear(16, 16, bias=False)
        self.unused = nn.Linear(16, 16, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.trained(torch.relu(self.below(x)))


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(16, 16, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(lambda x: torch.tanh(self.up(x)).sin(), x, use_reentrant=False)


def step_of(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Level 2: the whole of forward and backward."""

    def step(x: torch.Tensor) -> torch.Tensor:
        loss = model(x).float().sum()
        loss.backward()
        return loss.detach()

    return step


def captured(model: nn.Module, x: torch.Tensor, *, level: int = 1, **options: Any) -> Program:
    """The program of ``model`` on four ranks; the code is named as if it stood on line 1."""
    sharding = {k: options.pop(k) for k in ("param_dtype", "reduce_dtype") if k in options}
    with fake_world(WORLD):
        zc.shard(model, **sharding)
        program = zc.capture(model if level == 1 else step_of(model), x, **options)
    program.name = re.sub(r":\d+ ", ":1 ", program.name)
    return program


def words() -> torch.Tensor:
    return torch.zeros(3, dtype=torch.long)


def numbers() -> torch.Tensor:
    return torch.ones(2, 16)


PLAIN: list[Any] = [{"shard_params": {"zero_stage": 3}}, "shard_update", "clean_graph"]
CASES: dict[str, Callable[[], Program]] = {
    "tied weights are read and reduced once": lambda: captured(Tied(), words()),
    "tied weights at level 2": lambda: captured(Tied(), words(), level=2),
    "frozen and unused parameters": lambda: captured(Parted(), numbers(), passes=PLAIN),
    "a checkpointed function is computed again": lambda: captured(Checkpointed(), numbers()),
    "dropout": lambda: captured(
        nn.Sequential(nn.Linear(16, 16, bias=False), nn.Dropout(0.25)), numbers(), level=2
    ),
    "bf16": lambda: captured(
        nn.Linear(16, 16, bias=False),
        numbers().bfloat16(),
        level=2,
        passes="zero3",
        param_dtype=torch.bfloat16,
        reduce_dtype=torch.float32,
    ),
    "batch norm": lambda: captured(nn.BatchNorm1d(16, momentum=0.5), numbers(), level=2),
}


@pytest.mark.parametrize("name", CASES)
def test_program(name: str, golden: Callable[..., None]):
    golden(str(CASES[name]()), ".ir")


def test_frozen_parameters_are_gathered_and_not_reduced():
    program = captured(Parted(), numbers(), passes=[{"shard_params": {"zero_stage": 2}}])
    found = [(c.spec.op, c.stamp.param) for c in collectives_of(program)]
    assert found == [
        ("all_gather", "below.weight"),
        ("all_gather", "trained.weight"),
        ("reduce_scatter", "trained.weight"),
    ]
    assert not program.params["below.weight"].trainable


def test_low_precision_moves_in_low_precision():
    program = captured(
        nn.Linear(16, 16, bias=False), numbers().bfloat16(), passes="zero3",
        param_dtype=torch.bfloat16,
    )  # fmt: skip
    bytes_moved = {c.spec.op: c.payload_bytes for c in collectives_of(program)}
    assert bytes_moved == {"all_gather": 16 * 16 * 2, "reduce_scatter": 16 * 16 * 2}
    assert program.params["weight"].dtype == torch.float32


def test_autocast_gathers_in_its_dtype():
    model = nn.Sequential(nn.Linear(16, 16, bias=False))

    def forward(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(x)

    with fake_world(WORLD):
        zc.shard(model)
        program = zc.capture(forward, numbers(), passes="zero3")
    gathers = [c for c in collectives_of(program) if c.spec.op == "all_gather"]
    assert [c.payload_bytes for c in gathers] == [16 * 16 * 2]


def test_unsharded_parameters_are_data_parallel():
    with fake_world(WORLD):
        passes = [{"shard_params": {"zero_stage": 0}}]
        program = zc.capture(step_of(nn.Linear(16, 16)), numbers(), passes=passes)
    found = [(c.spec.op, c.stamp.param) for c in collectives_of(program)]
    assert sorted(found) == [("all_reduce", "bias"), ("all_reduce", "weight")]


def test_meta_parameters_are_captured_without_memory():
    with torch.device("meta"):
        model = nn.Linear(4096, 4096)
    with fake_world(1024):
        zc.shard(model)
        program = zc.capture(model, torch.empty(2, 4096, device="meta"), passes="zero3")
    assert program.params["weight"].layout.local_shape(0) == (4, 4096)


def test_inference_has_one_phase():
    with fake_world(WORLD), torch.no_grad():
        program = zc.capture(zc.shard(Tied()), words(), passes="zero3")
    assert not program.training
    assert [c.spec.op for c in collectives_of(program)] == ["all_gather"]


def test_recomputation_is_stamped():
    program = captured(Checkpointed(), numbers())
    again = [n.name for n in program.graph.nodes if n.name.endswith("_again")]
    assert "tanh_again" in again


def test_nothing_to_capture():
    def nothing(x: int) -> int:
        return x + 1

    with pytest.raises(zc.CaptureError) as error:
        zc.capture(nothing, 1)
    assert str(error.value) == (
        "nothing was captured from nothing: no tensor operation was traced; "
        "TORCH_LOGS=graph_breaks shows why"
    )


def test_functional_code_reads_weights_too():
    model = nn.Linear(16, 16, bias=False)

    def forward(x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, model.weight).sin()

    with fake_world(WORLD):
        zc.shard(model)
        program = zc.capture(forward, numbers(), passes="zero3")
    assert [c.spec.op for c in collectives_of(program)][:1] == ["all_gather"]


def entropy(model: nn.Module, x: torch.Tensor) -> Program:
    def step(x: torch.Tensor) -> torch.Tensor:
        loss = F.cross_entropy(model(x), x[:, 0].long())
        loss.backward()
        return loss.detach()

    return zc.capture(step, x)


def test_an_op_without_derivative_on_meta_is_refused():
    with fake_world(WORLD):
        model = zc.shard(nn.Linear(16, 16, device="meta"))
        with pytest.raises(zc.CaptureError) as error:
            entropy(model, torch.zeros(2, 16, device="meta"))
    assert str(error.value) == (
        "step calls aten::nll_loss, which has no derivative on the device of its operands, so "
        "gradients would be zero; in the place of the meta device use tensors without memory: "
        "'with zc.without_memory(): zc.materialize(model, \"cpu\")', and make the arguments there "
        "too"
    )


def test_tensors_without_memory_are_differentiated():
    with fake_world(WORLD):
        model = zc.shard(nn.Linear(16, 16, device="meta"))
        with zc.without_memory():
            zc.materialize(model, "cpu")
            x = torch.zeros(2, 16)
        program = entropy(model, x)
    assert "aten.nll_loss_backward" in str(program)
