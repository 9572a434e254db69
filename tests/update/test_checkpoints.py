"""Optimizer state that ``zc.step`` alone has made, through ``torch.distributed.checkpoint``.

Four ranks train and save; four, two and one go on. A batch belongs to a step and is cut over the
ranks, so one process that trains eagerly and without a break says what all of them should find.
"""

from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from multiprocess import run_ranks
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import zc

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
BEFORE, AFTER = 3, 3  # steps on each side of the checkpoint
ROWS = 8
EXACT: Any = [{"shard_params": {"zero_stage": 3}}, "shard_update", "clean_graph"]
# absolute, of numbers near 1 that a step moves by 0.01; ranks add up a batch in another order
RESHARDED = 1e-6
Outcome = dict[str, torch.Tensor]


class Uneven(nn.Module):
    """Ten rows, and nine, of which the last of four ranks has none; whole biases; a 0-d scale."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(7, 10), nn.Linear(10, 9)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.tanh(self.up(x))) * self.scale


class Training:
    """A model, an optimizer with two groups, and steps of both, on as many ranks as there are.

    Args:
        seed: of the parameters.
        passes: of the compiled step; ``None`` runs it eagerly.
        update: whether ``zc.step`` is in the compiled step, or eager behind it.
    """

    def __init__(self, seed: int, passes: Any, update: bool = True) -> None:
        torch._dynamo.reset()
        torch.manual_seed(seed)
        self.rank, self.world = 0, 1
        if dist.is_initialized():
            self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.model: Any = zc.shard(Uneven())
        params = list(self.model.parameters())
        groups = [{"params": params[::2]}, {"params": params[1::2], "lr": 0.02, "amsgrad": True}]
        # Adam's own epsilon of 1e-8 turns rounding of tiny gradients into whole updates
        self.optimizer = torch.optim.AdamW(groups, lr=0.01, eps=1e-4, weight_decay=0.1)
        options = {"passes": passes, "executor": "interpret"}
        wrap = torch.compile(backend="zero", options=options) if passes else lambda step: step
        self.inside = wrap(self.step if update else self.forward_and_backward)
        self.update = not update

    def forward_and_backward(self, x: torch.Tensor) -> None:
        (self.model(x) - 1).square().mean().backward()

    def step(self, x: torch.Tensor) -> None:
        self.forward_and_backward(x)
        zc.step(self.optimizer)

    def run(self, first: int, last: int) -> Outcome:
        """Steps from ``first`` to before ``last``; parameters and state, whole, by name."""
        for number in range(first, last):
            batch = torch.randn(ROWS, 7, generator=torch.Generator().manual_seed(number))
            self.inside(batch.chunk(self.world)[self.rank])
            if self.update:
                zc.step(self.optimizer)
        found = {}
        for name, param in self.model.named_parameters():
            found[name] = whole(param)
            entries = self.optimizer.state[param].items()
            found |= {f"{name} {key}": whole(value) for key, value in entries}
        return found

    def after(self) -> Outcome:
        return self.run(BEFORE, BEFORE + AFTER)

    def save(self, folder: str) -> None:
        dcp.save(self.named(), checkpoint_id=f"{folder}/named")
        dcp.save(self.plain(), checkpoint_id=f"{folder}/plain")

    def load_named(self, folder: str) -> None:
        """What torch's helpers name after parameters; state need not be there before."""
        state = self.read(self.named(), f"{folder}/named")
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"],
                       optim_state_dict=state["optimizer"])  # fmt: skip

    def load_plain(self, folder: str) -> None:
        """State dicts as they are; numbers go into entries that earlier steps have made."""
        state = self.read(self.plain(), f"{folder}/plain")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def named(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer}

    def plain(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    @staticmethod
    def read(state: dict[str, Any], folder: str) -> dict[str, Any]:
        dcp.load(state, checkpoint_id=folder, no_dist=not dist.is_initialized())
        return state


def whole(value: Any) -> torch.Tensor:
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()


def save(rank: int, world: int, folder: str) -> dict[str, Outcome]:
    """Train and save, stepped by zc and eagerly; go on without a break, and from the other's."""
    found = {}
    trained = {"zc": Training(0, EXACT), "eager": Training(0, EXACT, update=False)}
    for name, training in trained.items():
        training.run(0, BEFORE)
        training.save(f"{folder}/{name}")
        found[f"{name} without a break"] = training.after()
    trained["zc"].load_named(f"{folder}/eager")
    found["zc from eager, named"] = trained["zc"].after()
    trained["eager"].load_plain(f"{folder}/zc")
    found["eager from zc, plain"] = trained["eager"].after()
    return found


def resume(rank: int, world: int, folder: str, passes: Any) -> dict[str, Outcome]:
    """Go on in new objects from what was saved."""
    found = {}
    ours, theirs = Training(1, passes), Training(1, passes, update=False)
    ours.load_named(f"{folder}/zc")
    found["zc from zc, named"] = ours.after()
    ours.load_plain(f"{folder}/zc")
    found["zc from zc, plain"] = ours.after()
    ours.load_plain(f"{folder}/eager")
    found["zc from eager, plain"] = ours.after()
    theirs.load_named(f"{folder}/zc")
    found["eager from zc, named"] = theirs.after()
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Outcome]]:
    """Parameters and state behind the last step, as the first rank has them, by world size."""
    folder = str(tmp_path_factory.mktemp("saved"))
    return {
        4: run_ranks(save, 4, folder, timeout=240)[0],
        2: run_ranks(resume, 2, folder, "zero3", timeout=240)[0],
        1: resume(0, 1, folder, EXACT),
    }


def differences(results: dict[int, dict[str, Outcome]], expected: Outcome) -> dict[Any, float]:
    """The largest difference from ``expected``, by world size and way."""
    found = {}
    for world, outcomes in results.items():
        for how, outcome in outcomes.items():
            assert outcome.keys() == expected.keys(), (world, how)
            worst = max((outcome[k] - expected[k]).abs().max().item() for k in expected)
            found[world, how] = worst
    return found


def test_another_world_size_goes_on_as_if_nothing_had_happened(results: Any):
    alone = Training(0, None)
    found = differences(results, alone.run(0, BEFORE + AFTER))
    assert len(found) == 12
    assert {case: d for case, d in found.items() if d > RESHARDED} == {}


def test_the_same_ranks_go_on_with_the_same_bits(results: Any):
    found = differences({4: results[4]}, results[4]["eager without a break"])
    assert len(found) == 4
    assert set(found.values()) == {0.0}


def test_every_entry_is_there(results: Any):
    outcome = results[2]["zc from zc, named"]
    assert {k.removeprefix("up.weight ") for k in outcome if k.startswith("up.weight ")} == {
        "step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq",
    }  # fmt: skip
    assert outcome["up.weight exp_avg"].shape == (10, 7)
    assert outcome["scale step"] == BEFORE + AFTER
