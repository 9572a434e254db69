"""What users do in training: each check holds on one of two ranks, at one level, beside DDP."""

import copy
import math
import warnings
from collections.abc import Callable

import torch
from capture.training import (
    OPTIONS,
    PLAIN,
    SIZES,
    Net,
    adamw,
    batch,
    compiled,
    forward_and_backward,
    loss_of,
    new_net,
    train,
    train_reference,
    train_sharded,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

import zc
from zc.comm.wire import METER

LOW_PRECISION = 2e-2  # relative; bf16 has 8 bits, and three steps of AdamW carry them on
ACCUMULATED = 1e-6  # of the largest; DDP adds the averages so far to what it averages next
LOWERED = 1e-6  # relative; a generated kernel rounds intermediate values of AdamW otherwise
NORM = 1e-6  # relative; squares are summed per shard first
GROWING = ((3, 5), (4, 5), (5, 7))


def equals_ddp(rank: int, level: int) -> None:
    assert train_sharded(new_net(), rank, level) == train_reference(new_net(), rank)


def dynamic_shapes(rank: int, level: int) -> None:
    losses = train_sharded(new_net(), rank, level, GROWING, dynamic=True)
    assert losses == train_reference(new_net(), rank, GROWING)


def recompiles(rank: int, level: int) -> None:
    losses = train_sharded(new_net(), rank, level, GROWING)
    assert losses == train_reference(new_net(), rank, GROWING)


def lengths_differ_by_rank(rank: int, level: int) -> None:
    sizes = ((3, 5), (3, 5 + rank), (3, 9 - rank))
    losses = train_sharded(new_net(), rank, level, sizes)
    assert losses == train_reference(new_net(), rank, sizes)


def graph_break(rank: int, level: int) -> None:
    """The pieces communicate what the unbroken model does: nothing is left unsharded."""
    METER.reset()
    train_sharded(new_net(), rank, level, SIZES[:1], options=PLAIN)
    whole = {op: sent * len(SIZES) for op, sent in METER.sent.items()}
    METER.reset()
    losses = train_sharded(new_net(breaks=True), rank, level, options=PLAIN)
    assert dict(METER.sent) == whole
    assert losses == train_reference(new_net(breaks=True), rank)


def checkpointing(rank: int, level: int) -> None:
    losses = train_sharded(new_net(checkpointed=True), rank, level)
    assert losses == train_reference(new_net(checkpointed=True), rank)


def dropout_follows_the_seed(rank: int, level: int) -> None:
    _check_seeds(new_net(dropout=0.2), rank, level)


def checkpointed_dropout_follows_the_seed(rank: int, level: int) -> None:
    _check_seeds(new_net(dropout=0.2, checkpointed=True), rank, level)


def _check_seeds(model: Net, rank: int, level: int) -> None:
    """Of one compiled function: only its first run compiles, which draws nothing either."""
    zc.shard(model)
    step, losses = compiled(model, level), {}
    start = [p.detach().clone() for p in model.parameters()]
    for run, seed in (("first", 5), ("same seed", 5), ("other seed", 6)):
        with torch.no_grad():
            for param, value in zip(model.parameters(), start, strict=True):
                param.copy_(value)
        torch.manual_seed(seed)
        losses[run] = train(model, step, rank)
    assert losses["first"] == losses["same seed"]
    assert losses["first"] != losses["other seed"]
    assert all(map(math.isfinite, losses["first"]))


def autocast(rank: int, level: int) -> None:
    losses = train_sharded(new_net(), rank, level, autocast=True)
    expected = train_reference(new_net(), rank, autocast=True)
    _assert_close(losses, expected, LOW_PRECISION)
    assert losses != train_reference(new_net(), rank)


def computing_in_bf16(rank: int, level: int) -> None:
    model = zc.shard(new_net(), param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    losses = train(model, compiled(model, level), rank)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    _assert_close(losses, train_reference(new_net(), rank), LOW_PRECISION)


def generation_in_the_middle(rank: int, level: int) -> None:
    """Evaluation, generation under ``no_grad`` and ``zc.full`` between training steps."""
    model = zc.shard(new_net(dropout=0.1))
    optimizer = adamw(model)
    step, predict = compiled(model, level), torch.compile(model, backend="zero", options=OPTIONS)
    for i in range(2):
        model.train()
        step(batch(i, rank))
        optimizer.step()
        optimizer.zero_grad()
        model.eval()
        words = _generate(predict)
        with torch.no_grad(), zc.full(model):
            norm = model.head.weight.norm()
    plain = new_net(dropout=0.1).eval()
    state = zc.full_state_dict(model)
    if rank == 0:
        plain.load_state_dict(state)
        assert torch.equal(words, _generate(plain))
        assert torch.equal(norm, plain.head.weight.norm())


@torch.no_grad()
def _generate(model: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    words = batch(0, 0, 1, 2)
    for _ in range(3):
        words = torch.cat([words, model(words)[:, -1:].argmax(-1)], 1)
    return words


def two_models_and_optimizers(rank: int, level: int) -> None:
    torch.manual_seed(0)
    generator, critic = nn.Sequential(nn.Linear(8, 16)), nn.Sequential(nn.Linear(16, 1))
    plain = [DistributedDataParallel(copy.deepcopy(m)) for m in (generator, critic)]
    expected = _duel(*plain, *plain, rank)
    mine = [zc.shard(copy.deepcopy(m)) for m in (generator, critic)]
    if level == 1:
        calls = [torch.compile(m, backend="zero", options=OPTIONS) for m in mine]
    else:
        calls = [torch.compile(m.forward, backend="zero", options=OPTIONS) for m in mine]
    assert _duel(*mine, *calls, rank) == expected


def _duel(
    generator: nn.Module,
    critic: nn.Module,
    generate: Callable[..., torch.Tensor],
    criticise: Callable[..., torch.Tensor],
    rank: int,
) -> list[float]:
    one, other = (torch.optim.SGD(m.parameters(), 0.1) for m in (generator, critic))
    losses = []
    for i in range(3):
        noise = torch.randn(4, 8, generator=torch.Generator().manual_seed(10 * i + rank))
        for optimizer, wanted in ((other, 0.0), (one, 1.0)):
            made = generate(noise).detach() if optimizer is other else generate(noise)
            loss = (criticise(made) - wanted).pow(2).mean()
            one.zero_grad()
            other.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def clipping(rank: int, level: int) -> None:
    """Between backward and update: outside the compiled function, and at level 2 inside it."""
    reference = DistributedDataParallel(new_net())
    loss_of(reference, batch(0, rank)).backward()
    expected = clip_grad_norm_(reference.parameters(), 0.1).item()
    model = zc.shard(new_net())
    step = forward_and_backward(model) if level == 2 else compiled(model, 1)

    def clipped(x: torch.Tensor) -> torch.Tensor:
        step(x)
        return clip_grad_norm_(model.parameters(), 0.1)

    if level == 2:
        clipped = torch.compile(clipped, backend="zero", options=OPTIONS)
    norm = clipped(batch(0, rank)).full_tensor().item()  # type: ignore[attr-defined]
    _assert_close([norm], [expected], NORM)
    for found, wanted in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(found.grad.full_tensor(), wanted.grad, rtol=NORM, atol=1e-9)


def accumulation(rank: int, level: int) -> None:
    """Several backward passes before an update, without ``zero_grad`` between."""
    reference = DistributedDataParallel(new_net())
    model = zc.shard(new_net())
    step, plain = compiled(model, level), forward_and_backward(reference)
    for i in range(3):
        step(batch(i, rank))
        plain(batch(i, rank))
    for found, wanted in zip(model.parameters(), reference.parameters(), strict=True):
        atol = ACCUMULATED * wanted.grad.abs().max().item()
        torch.testing.assert_close(found.grad.full_tensor(), wanted.grad, rtol=0, atol=atol)


def losses_from_outside(rank: int, level: int) -> None:
    """``backward()`` of a loss that another function made is not lost, whatever the backend."""
    backend = "eager" if level == 1 else "zero"

    @torch.compile(backend=backend)
    def backward(loss: torch.Tensor) -> None:
        loss.backward()

    weight = torch.ones(3, requires_grad=True)
    backward((weight * 2).sum())
    assert weight.grad is not None
    assert weight.grad.tolist() == [2.0, 2.0, 2.0]
    assert not torch._dynamo.config.trace_autograd_ops


def other_backends_are_left_alone(rank: int, level: int) -> None:
    """After zc has compiled a step, functions of other backends break where they did before."""
    breaks = [_breaks_of_a_step()]
    model = zc.shard(new_net())
    train(model, compiled(model, level), rank)
    assert not torch._dynamo.config.trace_autograd_ops
    breaks.append(_breaks_of_a_step())
    assert breaks[0] == breaks[1] > 0


def _breaks_of_a_step() -> int:
    torch._dynamo.reset()
    weight = torch.ones(3, requires_grad=True)

    def step() -> torch.Tensor:
        loss = (weight * 2).sum()
        loss.backward()
        return loss.detach() + 1

    explained = torch._dynamo.explain(step)()
    return explained.graph_break_count


def returning_the_loss_itself(rank: int, level: int) -> None:
    """Not detached: level 2 becomes level 1, said in a warning, with the same results."""
    model = zc.shard(new_net())
    optimizer = adamw(model)

    @torch.compile(backend="zero", options=OPTIONS)
    def step(x: torch.Tensor) -> torch.Tensor:
        loss = loss_of(model, x)
        loss.backward()
        zc.step(optimizer)
        return loss

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        losses = [step(batch(i, rank)).item() for i in range(len(SIZES))]
    _assert_close(losses, train_reference(new_net(), rank), LOWERED)
    line = step.__wrapped__.__code__.co_firstlineno  # type: ignore[attr-defined]
    name = f"trains_alike.py:{line} returning_the_loss_itself.<locals>.step"
    texts = [str(w.message) for w in caught if "loss.detach()" in str(w.message)]
    assert texts == [
        f"{name} returns a loss whose graph its backward() has used up, so forward and backward "
        f"are compiled apart (level 1); return loss.detach() to compile the whole step as one "
        f"program"
    ]


def _assert_close(found: list[float], expected: list[float], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert abs(one - other) <= tolerance * abs(other), (found, expected)


BOTH = (1, 2)
CHECKS: dict[str, tuple[Callable[[int, int], None], tuple[int, ...]]] = {
    "equals_ddp": (equals_ddp, BOTH),
    "dynamic_shapes": (dynamic_shapes, BOTH),
    "recompiles": (recompiles, (1,)),
    "lengths_differ_by_rank": (lengths_differ_by_rank, BOTH),
    "graph_break": (graph_break, BOTH),
    "checkpointing": (checkpointing, BOTH),
    "dropout_follows_the_seed": (dropout_follows_the_seed, BOTH),
    "checkpointed_dropout": (checkpointed_dropout_follows_the_seed, (1,)),
    "autocast": (autocast, BOTH),
    "computing_in_bf16": (computing_in_bf16, BOTH),
    "generation_in_the_middle": (generation_in_the_middle, BOTH),
    "two_models_and_optimizers": (two_models_and_optimizers, BOTH),
    "clipping": (clipping, BOTH),
    "accumulation": (accumulation, BOTH),
    "losses_from_outside": (losses_from_outside, BOTH),
    "other_backends_are_left_alone": (other_backends_are_left_alone, BOTH),
    "returning_the_loss_itself": (returning_the_loss_itself, (2,)),
}
