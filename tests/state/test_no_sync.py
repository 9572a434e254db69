"""``zc.no_sync``: micro-batches at level 1, beside ``DistributedDataParallel.no_sync``."""

import copy
import warnings
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from multiprocess import run_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from update.optimizers import Awkward

import zc
from zc.comm.wire import METER
from zc.errors import ShardError, ZcError
from zc.state.checkpoint import full_state_dict

MICRO = 3
ROUNDING = 1e-6  # absolute, of numbers near 1: stage 3 averages each micro-batch, then adds
PASSES = [{"shard_params": {"zero_stage": 0}}, "clean_graph"]


def passes_of(zero_stage: int) -> list[Any]:
    return [{"shard_params": {"zero_stage": zero_stage}}, "clean_graph"]


def batch(number: int, rank: int, rows: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(10 * number + rank)
    return torch.randn(rows, 7, generator=generator)


class Run:
    """A model, how it is called, its optimizer, and its ``no_sync``."""

    def __init__(self, zero_stage: int | None, dtype: torch.dtype | None = None) -> None:
        torch.manual_seed(0)
        self.model: Any = Awkward()
        if zero_stage is None:
            self.call = DistributedDataParallel(self.model)
            self.no_sync = self.call.no_sync
        else:
            if zero_stage:
                zc.shard(self.model, reduce_dtype=dtype)
            options = {"passes": passes_of(zero_stage), "executor": "interpret"}
            self.call = torch.compile(self.model, backend="zero", options=options)
            self.no_sync = lambda: zc.no_sync(self.model)
        self.params = list(self.model.parameters())
        self.optimizer = torch.optim.SGD(self.params, lr=0.1, momentum=0.9)

    def backward(self, x: torch.Tensor) -> float:
        loss = self.call(x).square().mean()
        loss.backward()
        return loss.item()

    def update(self, number: int, rank: int, rows: tuple[int, ...] = (4,) * MICRO) -> float:
        """One update from ``len(rows)`` micro-batches; the norm of its gradient."""
        for i, count in enumerate(rows):
            with nullcontext() if i + 1 == len(rows) else self.no_sync():
                self.backward(batch(100 * number + i, rank, count))
        norm: Any = clip_grad_norm_(self.params, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def whole(self) -> list[torch.Tensor]:
        values = [p.detach() for p in self.params]
        return [v.full_tensor() if hasattr(v, "full_tensor") else v for v in values]


def differ(one: Run, other: Run) -> float:
    pairs = zip(one.whole(), other.whole(), strict=True)
    return max((p - q).abs().max().item() for p, q in pairs)


def sent_by(run: Run, rank: int, rows: tuple[int, ...]) -> dict[str, int]:
    METER.reset()
    run.update(7, rank, rows)
    return dict(METER.sent)


def compiled_graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def check_stage(rank: int, stage: int) -> dict[str, Any]:
    torch._dynamo.reset()
    ours, theirs = Run(stage), Run(None)
    norms = [(run.update(0, rank), run.update(1, rank, (4,))) for run in (ours, theirs)]
    before = compiled_graphs()
    for i in range(2):
        ours.update(2 + i, rank), theirs.update(2 + i, rank)
    found: dict[str, Any] = {"compiled": compiled_graphs() - before}
    rows = (4, 3, 2)  # which share their sums, though each has a program of its own
    norms.append((ours.update(4, rank, rows), theirs.update(4, rank, rows)))
    found["norms"] = max(abs(a - b) for a, b in zip(norms[0], norms[1], strict=True))
    found["difference"] = differ(ours, theirs)
    found["one"], found["several"] = sent_by(ours, rank, (4,)), sent_by(ours, rank, (4,) * MICRO)
    return found


def check_stages(rank: int, world: int) -> list[dict[str, Any]]:
    warnings.simplefilter("ignore")
    return [check_stage(rank, stage) for stage in range(4)]


def test_accumulation_equals_data_parallel_and_sends_once():
    for found in run_ranks(check_stages, 2, timeout=200):
        for stage, result in enumerate(found):
            assert result["difference"] <= ROUNDING, (stage, result)
            assert result["norms"] <= ROUNDING, (stage, result)
            assert result["compiled"] == 0
            times = MICRO if stage == 3 else 1
            assert result["several"] == {k: times * v for k, v in result["one"].items()}
            assert result["one"], stage


def refusal_of(function: Any) -> str:
    with pytest.raises(ZcError) as error:
        function()
    return f"{type(error.value).__name__}: {error.value}"


def check_uses(rank: int, world: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    torch._dynamo.reset()
    run, reference = Run(2), Run(None)
    with run.no_sync(), run.no_sync():
        run.backward(batch(0, rank))
    found["inside"] = max(float(p.grad.full_tensor().abs().max()) for p in run.params)
    state = full_state_dict(run.model)
    found["state"] = sorted(state) == sorted(Awkward().state_dict()) if rank == 0 else True
    found["forgotten"] = refusal_of(run.optimizer.step)
    options = {"passes": "zero2", "executor": "interpret"}
    found["forgotten compiled"] = refusal_of(zc.compile_step(run.optimizer, options))
    update = torch.compile(lambda: zc.step(run.optimizer), backend="zero", options=options)
    found["forgotten zc.step"] = refusal_of(update)
    run.optimizer.zero_grad()  # drops what waits
    run.optimizer.step()
    for one in (run, reference):
        one.update(1, rank)
    found["after zero_grad"] = differ(run, reference)
    for one in (run, reference):
        with one.no_sync():
            one.backward(batch(2, rank))
            with torch.no_grad():
                for param in one.params:
                    param.mul_(0.5)
            one.backward(batch(3, rank))
        one.update(4, rank, (4,))
    found["changed inside"] = differ(run, reference)
    stepped = []
    for one in (run, reference):
        with one.no_sync():
            with torch.no_grad():  # gathers, and leaves nothing that waits
                one.call(batch(5, rank))
            for param in one.params:
                param.grad = torch.ones_like(param)
            torch.optim.SGD(one.params, lr=0.1, foreach=True).step()  # counts no version
            with torch.no_grad():
                stepped.append(one.call(batch(5, rank)).abs().max().item())
        one.optimizer.zero_grad()
    found["stepped inside"] = abs(stepped[0] - stepped[1])
    copied = copy.deepcopy(run.model)
    found["copied"] = len(list(copied.parameters()))
    rounded = Run(2, torch.bfloat16)
    rounded.update(5, rank)
    reference = Run(2)
    reference.update(5, rank)
    found["rounded"] = differ(rounded, reference)
    return found


WAITING = (
    "would leave out gradients of its parameter 0, shape [], that zc.no_sync has kept: run "
    "backward() of the last micro-batch outside of zc.no_sync (it must reach this parameter), or "
    "call optimizer.zero_grad() to drop them"
)
BF16_ROUNDING = 2e-3  # a step of 0.1 times a gradient near 1, whose sum is rounded to 8 bits


def test_what_stands_between_micro_batches():
    for found in run_ranks(check_uses, 2, timeout=200):
        assert found["inside"] == 0.0
        assert found["state"]
        assert found["forgotten"] == f"ShardError: SGD.step {WAITING}"
        assert found["forgotten compiled"] == f"ShardError: SGD.step {WAITING}"
        assert found["forgotten zc.step"].endswith(WAITING)
        assert found["after zero_grad"] <= ROUNDING
        assert found["changed inside"] <= ROUNDING
        assert found["stepped inside"] <= ROUNDING
        assert found["copied"] > 0
        assert 0.0 < found["rounded"] <= BF16_ROUNDING


def test_one_process_accumulates_as_ever():
    torch._dynamo.reset()
    model, other = Awkward(), Awkward()
    other.load_state_dict(model.state_dict())
    call = torch.compile(model, backend="zero", options={"passes": PASSES, "executor": "interpret"})
    for i in range(MICRO):
        with zc.no_sync(model):
            call(batch(i, 0)).sum().backward()
        other(batch(i, 0)).sum().backward()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)  # type: ignore[arg-type]


def test_a_whole_step_is_refused():
    torch._dynamo.reset()
    model = nn.Linear(7, 2)

    @torch.compile(backend="zero", options={"passes": PASSES, "executor": "interpret"})
    def step(x: torch.Tensor) -> torch.Tensor:
        loss = model(x).sum()
        loss.backward()
        return loss.detach()

    step(batch(0, 0))
    with zc.no_sync(model), pytest.raises(ShardError) as error:
        step(batch(0, 0))
    line = step.__wrapped__.__code__.co_firstlineno  # type: ignore[attr-defined]
    name = "test_a_whole_step_is_refused.<locals>.step"
    assert str(error.value) == (
        f"test_no_sync.py:{line} {name} has its backward() inside and runs within zc.no_sync, "
        f"which holds back what backward() outside of compiled code reduces; compile the model "
        f"instead (level 1), or leave zc.no_sync out"
    )
    step(batch(0, 0))


def test_inside_a_compiled_function_it_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with pytest.raises(ShardError) as error, zc.no_sync(nn.Linear(2, 2)):
        pass
    assert str(error.value) == (
        "zc.no_sync stands inside a compiled function; put it around the call of the compiled "
        "model and its backward()"
    )
