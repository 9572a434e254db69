"""What users get wrong: each check holds on both ranks, with the whole message and no hang."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from capture.training import (
    OPTIONS,
    STAGE_3,
    WORDS,
    Net,
    batch,
    compiled,
    new_net,
    place_of,
    refusal_of,
)
from torch import nn

import zc
import zc.plan


class Tied(nn.Module):
    """Reads one weight before a graph break and uses it behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 16)
        self.linear = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.embed.weight
        hidden = self.linear(F.embedding(x, weight))
        torch._dynamo.graph_break()
        return F.linear(hidden, weight)


class Forked(nn.Module):
    """One way in, two ways on."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16, bias=False)
        self.left = nn.Linear(16, 16, bias=False)
        self.right = nn.Linear(16, 8, bias=False)

    def forward(self, x: torch.Tensor, left: bool) -> torch.Tensor:
        x = self.first(x)
        return self.left(x) if left else self.right(x)


def zero(function: Any, passes: Any = "zero3") -> Any:
    return torch.compile(function, backend="zero", options={**OPTIONS, "passes": passes})


def weight_across_a_break(rank: int, level: int) -> None:
    model = zc.shard(Tied())
    assert refusal_of(lambda: compiled(model, 1)(batch(0, rank))) == (
        f"CaptureError: parameter 'embed.weight' is read in {place_of(Tied.forward)} and its full "
        f"value leaves this compiled piece (a graph break lies between the read and its use, or "
        f"the function returns it); read the weight after the break, or remove the break: "
        f"TORCH_LOGS=graph_breaks shows it"
    )


def unsharded_under_zero3(rank: int, level: int) -> None:
    assert refusal_of(lambda: compiled(new_net(), level)(batch(0, rank))) == (
        "PipelineError: pass 1, 'shard_params', failed: parameter 'embed.weight' is not sharded, "
        "and zero_stage 3 needs it to be; call zc.shard(model) before the optimizer is built, or "
        "use zero0"
    )


def sharded_under_zero0(rank: int, level: int) -> None:
    model = zc.shard(new_net())
    assert refusal_of(lambda: zero(model, "zero0")(batch(0, rank))) == (
        "PipelineError: pass 1, 'shard_params', failed: parameter 'embed.weight' is sharded, and "
        "zero_stage 0 keeps parameters whole; use zero1, zero2 or zero3, or do not call zc.shard "
        "on this model"
    )


def optimizer_built_before_shard(rank: int, level: int) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    zc.shard(model)
    compiled(model, level)(batch(0, rank))
    message = (
        "ShardError: SGD holds 'embed.weight' as it was before zc.shard and would train nothing; "
        "build the optimizer after zc.shard and zc.materialize"
    )
    assert refusal_of(optimizer.step) == message
    assert refusal_of(lambda: zc.step(optimizer)) == message


def ranks_that_branch(rank: int, level: int) -> None:
    forked = zero(zc.shard(Forked()), STAGE_3)
    message = refusal_of(lambda: forked(torch.ones(3, 16), rank == 0))
    here, there = (
        f"forward all_gather f32[{n}] on dp of '{name}.weight' on rank {r}"
        for r, n, name in ((0, 256, "left"), (1, 128, "right"))
    )
    first, second = (here, there) if f"is {here}" in message else (there, here)
    assert message == (
        f"PlanError: {place_of(Forked.forward)}: ranks compiled different programs; collective 1 "
        f"is {first} and {second}; make every rank run the same modules in the same order (a "
        f"branch on local data must not decide which parameters are used)"
    )


def recompile_on_one_rank(rank: int, level: int) -> None:
    zc.plan.AGREE_SECONDS = 1.0
    forked = zero(zc.shard(Forked()))
    forked(torch.ones(3, 16), True)
    if rank == 0:
        assert refusal_of(lambda: forked(torch.ones(3, 16), False)) == (
            f"PlanError: {place_of(Forked.forward)}: rank 0 recompiled with a different "
            f"communication plan and only 1 of 2 ranks did so within 1 s; a branch on local data "
            f"decides which parameters are used: take it out of the compiled function, or make it "
            f"the same on every rank"
        )


def full_tensor_meets_shards(rank: int, level: int) -> None:
    """Weights read outside the forward are shards; torch itself refuses to mix them."""
    model = zc.shard(new_net())
    penalty = refusal_of(lambda: torch.ones(2, 16) @ model.head.weight.t())
    assert "got mixed torch.Tensor and DTensor" in penalty, penalty


CHECKS: dict[str, tuple[Callable[[int, int], None], tuple[int, ...]]] = {
    "weight_across_a_break": (weight_across_a_break, (1,)),
    "unsharded_under_zero3": (unsharded_under_zero3, (1, 2)),
    "sharded_under_zero0": (sharded_under_zero0, (1,)),
    "optimizer_built_before_shard": (optimizer_built_before_shard, (1, 2)),
    "ranks_that_branch": (ranks_that_branch, (1,)),
    "recompile_on_one_rank": (recompile_on_one_rank, (1,)),
    "full_tensor_meets_shards": (full_tensor_meets_shards, (1,)),
}
