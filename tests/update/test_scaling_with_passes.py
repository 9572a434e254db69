"""Loss scaling together with the passes that change how a step is carried out."""

import copy
from typing import Any

import pytest
import torch
from acting import helps_always
from torch import nn
from torch.amp.grad_scaler import GradScaler

import zc
from zc.cost.balance import Balance

ZERO: list[Any] = [{"shard_params": {"zero_stage": 0}}, "shard_update"]
LOWER: dict[str, Any] = {"lower_update": {"target": "eager"}}
QUANTIZE: dict[str, Any] = {"quantize_moments": {"smallest": 1}}
OVERFLOWS = (0, 3)  # steps with an infinite gradient; the first makes no state
# absolute, of weights near 1: kernels round intermediate values once, in fp32
ROUNDING = 2e-6
# absolute, a tenth of one step: moments are off by up to 0.00704 of the largest of their block
EIGHT_BITS = 1e-3
# name: passes, those to compare with (None: eager), tolerance
CASES: dict[str, tuple[list[Any], list[Any] | None, float]] = {
    "fuse_update": ([*ZERO, "fuse_update"], None, 0.0),
    "fuse_update, lowered": ([*ZERO, "fuse_update", LOWER], None, ROUNDING),
    "cast_in_update": ([*ZERO, "cast_in_update"], None, 0.0),
    "cast_in_update, lowered": ([*ZERO, "cast_in_update", LOWER], None, ROUNDING),
    "quantize_moments": ([*ZERO, QUANTIZE], None, EIGHT_BITS),
    "quantize_moments, lowered": ([*ZERO, QUANTIZE, LOWER], [*ZERO, QUANTIZE], ROUNDING),
    "all": ([*ZERO, "cast_in_update", QUANTIZE, "fuse_update", LOWER], None, EIGHT_BITS),
}


class Scaled:
    """A step under fp16 autocast with a scaler of its own, eager where there are no passes."""

    def __init__(self, passes: list[Any] | None) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.scaler = GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
        self.step: Any = self.body
        if passes is not None:
            torch._dynamo.reset()
            options: dict[str, Any] = {"passes": passes, "executor": "interpret"}
            self.step = torch.compile(self.body, backend="zero", options=options)

    def body(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.float16):
            loss = self.model(x).float().square().mean()
        zc.scale(loss, self.scaler).backward()
        zc.step(self.optimizer, self.scaler)
        return loss.detach()

    def weights(self) -> list[torch.Tensor]:
        return copy.deepcopy([p.detach() for p in self.model.parameters()])


@pytest.mark.parametrize("name", CASES)
def test_results(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Balance, "helps", helps_always)
    passes, others, tolerance = CASES[name]
    ours, theirs = Scaled(passes), Scaled(others)
    draws = torch.Generator().manual_seed(1)
    for i in range(5):
        x = torch.randn(8, 6, generator=draws)
        if i in OVERFLOWS:
            x[0, 0] = 1e30
        before = ours.weights()
        ours.step(x)
        theirs.step(x)
        for mine, other, old in zip(ours.weights(), theirs.weights(), before, strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=tolerance)
            assert torch.equal(mine, old) == (i in OVERFLOWS)
        assert ours.scaler.state_dict() == theirs.scaler.state_dict()
        counts = [entry["step"].item() for entry in ours.optimizer.state.values()]
        assert set(counts) <= {float(sum(k not in OVERFLOWS for k in range(i + 1)))}


def test_a_skipped_step_keeps_codes_and_scales():
    trained = Scaled([*ZERO, QUANTIZE, LOWER])
    x = torch.randn(8, 6)
    trained.step(x)
    kept = copy.deepcopy(trained.optimizer.state_dict()["state"])
    overflow = x.clone()
    overflow[0, 0] = 1e30
    trained.step(overflow)
    for key, entries in trained.optimizer.state_dict()["state"].items():
        assert all(torch.equal(entries[k], value) for k, value in kept[key].items())
