"""Loss scaling: compiled steps beside ``torch.amp.GradScaler``, on one rank and on two."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from multiprocess import run_ranks
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed
from torch.amp.grad_scaler import GradScaler
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

import zc
from zc.errors import ZcError
from zc.program.kernels import FUSED_UPDATE, spec_of

STEPS = 12
OVERFLOWS = (0, 5, 6)  # steps with an infinite gradient; the first makes no state
ONE_BY_ONE: list[Any] = [{"shard_params": {"zero_stage": 0}}, "shard_update", "clean_graph"]
SHARED = 2e-4  # absolute: each half of the batch rounds its gradients to fp16, 11 bits
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
}
CLIPS: dict[str, Any] = {
    "no": None,
    "norm": lambda params: clip_grad_norm_(params, 0.1),
    "value": lambda params: clip_grad_value_(params, 0.01),  # makes infinities finite
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1))


class Scaled:
    """A model trained under fp16 autocast with a scaler of its own."""

    def __init__(self, optimizer: str, clip: str, model: nn.Module) -> None:
        self.model, self.clip = model, CLIPS[clip]
        self.optimizer = OPTIMIZERS[optimizer](model.parameters())
        self.scaler = GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
        self.step: Callable[[torch.Tensor], torch.Tensor] = self.body

    def compiled(self, **options: Any) -> "Scaled":
        torch._dynamo.reset()
        self.step = torch.compile(self.body, backend="zero", options=options)
        return self

    def body(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.float16):
            loss = self.model(x).float().square().mean()
        zc.scale(loss, self.scaler).backward()
        if self.clip is not None:
            zc.unscale_(self.optimizer, self.scaler)
            self.clip(self.model.parameters())
        zc.step(self.optimizer, self.scaler)
        return loss.detach()

    def state(self) -> tuple[Any, ...]:
        """Scale and count of steps, and all optimizer state."""
        kept = self.scaler.state_dict()
        return kept, {k: dict(v) for k, v in self.optimizer.state_dict()["state"].items()}


def batches(world: int = 1, rank: int = 0) -> list[torch.Tensor]:
    """Halves of the same batches; an overflow is in the first rank's alone."""
    draws = torch.Generator().manual_seed(1)
    found = []
    for i in range(STEPS):
        x = torch.randn(8, 6, generator=draws)
        if i in OVERFLOWS:
            x[0, 0] = 1e30
        found.append(x.chunk(world)[rank].contiguous())
    return found


@pytest.mark.parametrize("clip", sorted(CLIPS))
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_steps_scales_and_state_are_those_of_grad_scaler(optimizer: str, clip: str):
    ours = Scaled(optimizer, clip, network()).compiled(passes=ONE_BY_ONE, executor="interpret")
    theirs = Scaled(optimizer, clip, network())
    for i, x in enumerate(batches()):
        before = copy.deepcopy([p.detach() for p in ours.model.parameters()])
        assert torch.equal(ours.step(x), theirs.step(x)), i
        torch.testing.assert_close(ours.state(), theirs.state(), rtol=0, atol=0)
        for mine, other, old in zip(
            ours.model.parameters(), theirs.model.parameters(), before, strict=True
        ):
            assert torch.equal(mine, other), i
            assert torch.equal(mine, old) == (i in OVERFLOWS)


def test_unscaling_and_skipping_happen_in_the_kernel():
    trained = Scaled("adamw", "no", network())
    program = zc.capture(trained.body, batches()[0], passes="zero0")
    kernels = program.graph.find_nodes(op="call_function", target=FUSED_UPDATE)
    kernel = spec_of(str(kernels[0].args[3]))
    assert kernel.bytes_per_element() == (16, 12)
    assert [o.name for o in kernel.operands if o.scalar] == ["factor", "skip"]
    assert kernel.body[0].text() == "grad * factor"
    kept = [s.text().rpartition(",")[0] for s in kernel.body if s.op == "aten.where.self"]
    assert sorted(kept) == [f"where(skip, {n}" for n in ("exp_avg", "exp_avg_sq", "param")]


def test_a_scaler_that_is_not_enabled_does_nothing():
    trained = Scaled("adamw", "no", network())
    trained.scaler = GradScaler("cpu", enabled=False)
    program = zc.capture(trained.body, batches()[0], passes="zero0")
    assert not any(entry.kind == "loss_scale" for entry in program.state.values())


def test_a_loaded_scale_counts():
    ours = Scaled("adamw", "no", network()).compiled(passes="zero0", executor="interpret")
    x = batches()[1]
    ours.step(x)
    ours.scaler.load_state_dict(ours.scaler.state_dict() | {"scale": 8.0, "_growth_tracker": 2})
    ours.step(x)
    assert ours.scaler.get_scale() == 16.0


def test_one_scaler_for_two_optimizers():
    model = network()
    first, second = (torch.optim.SGD(model[i].parameters(), lr=0.1) for i in (0, 2))
    scaler = GradScaler("cpu")

    @torch.compile(backend="zero", options={"passes": "zero0"})
    def two_steps(x: torch.Tensor) -> torch.Tensor:
        loss = model(x).square().mean()
        zc.scale(loss, scaler).backward()
        zc.step(first, scaler)
        zc.step(second, scaler)
        return loss.detach()

    with pytest.raises(BackendCompilerFailed) as caught:
        two_steps(batches()[1])
    (message,) = [line for line in str(caught.value).splitlines() if "GradScaler" in line]
    assert message.partition("two_steps ")[2] == (
        "are stepped with one GradScaler; give each a GradScaler of its own"
    )


@pytest.mark.parametrize("how", ["twice", "of another", "another backend"])
def test_unscaling_that_would_go_wrong_is_refused(how: str):
    model = network()
    first, second = (torch.optim.SGD(model[i].parameters(), lr=0.1) for i in (0, 2))
    scaler = GradScaler("cpu")

    def body(x: torch.Tensor) -> torch.Tensor:
        loss = model(x).square().mean()
        zc.scale(loss, scaler).backward()
        zc.unscale_(first, scaler)
        if how == "twice":
            zc.unscale_(first, scaler)
        zc.step(second if how == "of another" else first, scaler)
        return loss.detach()

    torch._dynamo.reset()
    backend = "aot_eager" if how == "another backend" else "zero"
    options: Any = None if how == "another backend" else {"passes": "zero0"}
    with pytest.raises((BackendCompilerFailed, ZcError)) as caught:
        torch.compile(body, backend=backend, options=options)(batches()[1])
    apart = (
        "zc.unscale_ and zc.step(optimizer, scaler) stand apart; put both into one function "
        "compiled with backend='zero' in one piece, or call scaler.unscale_(optimizer) uncompiled"
    )
    twice = "calls zc.unscale_ on the same optimizer twice before its step; call it once"
    assert (twice if how == "twice" else apart) in str(caught.value)


def test_a_loss_in_bf16():
    torch.manual_seed(0)
    ours = nn.Linear(4, 2).bfloat16()
    theirs = copy.deepcopy(ours)
    for model, compiled in ((ours, True), (theirs, False)):
        optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), GradScaler("cpu")

        def body(x: Any, model: Any = model, optimizer: Any = optimizer, s: Any = scaler) -> Any:
            loss = model(x).square().mean()
            zc.scale(loss, s).backward()
            zc.step(optimizer, s)
            return loss.detach()

        torch._dynamo.reset()
        options: Any = {"passes": ONE_BY_ONE, "executor": "interpret"}
        step = torch.compile(body, backend="zero", options=options) if compiled else body
        for i in range(3):
            step(torch.full((3, 4), 0.5 + i, dtype=torch.bfloat16))
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_a_scaler_that_is_gone():
    with pytest.raises(ZcError) as caught:
        torch.ops.zc.scale(torch.ones(()), 10**6)
    assert str(caught.value) == (
        "the GradScaler of a compiled step is gone; keep it as long as the step"
    )


def on_ranks(rank: int, world: int) -> dict[tuple[Any, ...], Any]:
    """Per case: the largest difference from one process, and the scales after each step."""
    found = {}
    for level, stage, clip in [(2, s, "no") for s in range(4)] + [(2, 3, "value"), (1, 3, "no")]:
        single = Scaled("adamw", clip, network())
        model = network()
        model = model if stage == 0 else zc.shard(model)
        trained = Scaled("adamw", clip, model)
        if level == 2:
            trained.compiled(passes=f"zero{stage}", executor="interpret")
        else:
            torch._dynamo.reset()
            options = {"passes": f"zero{stage}", "executor": "interpret"}
            trained.model = torch.compile(model, backend="zero", options=options)
        scales = []
        for mine, whole in zip(batches(world, rank), batches(), strict=True):
            trained.step(mine)
            single.step(whole)
            scales.append((trained.scaler.get_scale(), single.scaler.get_scale()))
        pairs = zip(model.parameters(), single.model.parameters(), strict=True)
        full = [(getattr(p, "full_tensor", lambda p=p: p)(), q) for p, q in pairs]
        found[level, stage, clip] = max((p - q).abs().max().item() for p, q in full), scales
    return found


def test_an_overflow_on_one_rank_skips_on_every_rank():
    for found in run_ranks(on_ranks, 2, timeout=240):
        for case, (difference, scales) in found.items():
            assert difference <= SHARED, case
            assert [ours for ours, _ in scales] == [theirs for _, theirs in scales], case
